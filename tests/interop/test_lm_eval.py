"""lm-evaluation-harness's `hf` model on a sliced folder, without its data sets."""

import numpy as np
import pytest
import torch

REQUESTS = [("The river was", " large and old."), ("They played the game in the", " city"), ("", "Although the army began, the house ended."),
            ("1914 was the", " first year of the team @-@ season"), ("naïve café", " Zürich")]  # fmt: skip


@pytest.fixture(scope="module")
def sliced(run, tiny_model, text_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lm_eval") / "sliced"
    run("slice", tiny_model("llama", tie_word_embeddings=True), "--avg", "25%", "--calib", text_file, "--samples", "4", "--seqlen", "64", "-o", folder)
    return folder


@pytest.fixture(scope="module")
def harness(sliced, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
            patch.setenv(variable, "1")
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))
        from lm_eval.models.huggingface import HFLM

        yield HFLM(pretrained=str(sliced), trust_remote_code=True, device="cpu", dtype="float32", batch_size=3)


def instances(kind, arguments):
    from lm_eval.api.instance import Instance

    return [Instance(request_type=kind, doc={}, arguments=pair, idx=i) for i, pair in enumerate(arguments)]


def our_log_probabilities(helper, run_command, folder, ids, scratch):
    np.asarray(ids, dtype=np.int32).tofile(scratch / "ids")
    run_command([helper("logits_main"), folder, scratch / "ids", scratch / "logits"])
    logits = torch.from_numpy(np.fromfile(scratch / "logits", dtype=np.float32)).view(len(ids), -1)
    return logits.double().log_softmax(-1)


def test_log_likelihoods_are_dynslices(sliced, harness, helper, run_command, tmp_path):
    found = harness.loglikelihood(instances("loglikelihood", REQUESTS), disable_tqdm=True)
    for (context, continuation), (value, greedy) in zip(REQUESTS, found):
        both, begin = harness.tok_encode(context + continuation), len(harness.tok_encode(context))
        if not context:
            both, begin = [harness.prefix_token_id, *both], 1
        scores = our_log_probabilities(helper, run_command, sliced, both, tmp_path)[begin - 1 : -1]
        chosen = torch.tensor(both[begin:])
        expected = scores.gather(1, chosen[:, None]).sum().item()
        assert value == pytest.approx(expected, abs=1e-3 * len(chosen)) and expected < -1
        assert greedy == bool((scores.argmax(-1) == chosen).all())


def test_rolling_log_likelihood_is_dynslices(sliced, harness, helper, run_command, tmp_path):
    text = " ".join(context + continuation for context, continuation in REQUESTS)
    value = harness.loglikelihood_rolling(instances("loglikelihood_rolling", [(text,)]), disable_tqdm=True)[0]
    ids = [harness.prefix_token_id, *harness.tok_encode(text)]
    scores = our_log_probabilities(helper, run_command, sliced, ids, tmp_path)[:-1]
    assert value == pytest.approx(scores.gather(1, torch.tensor(ids[1:])[:, None]).sum().item(), abs=1e-3 * len(ids))


def test_generation_goes_until_a_stop_sequence(harness):
    options = {"until": ["."], "max_gen_toks": 8, "do_sample": False}
    made = harness.generate_until(instances("generate_until", [("The river was", options), ("One city", options)]), disable_tqdm=True)
    assert len(made) == 2 and all(isinstance(text, str) and "." not in text for text in made)
