"""Perplexity on data sets and files, per word and byte, and beside another model."""

import gzip
import json
import shutil

import pytest

from conftest import make_text
from test_tasks import Server

C4 = "c4-validation.00000-of-00008.json.gz"


@pytest.fixture(scope="module")
def ascii_file(tmp_path_factory):
    """No character has two bytes, so that no window cuts one."""
    path = tmp_path_factory.mktemp("text") / "ascii.txt"
    path.write_text(make_text(500, seed=4).encode("ascii", "replace").decode(), encoding="ascii")
    return path


def measured(run, *arguments, **options):
    result = run("eval", *arguments, "--json", **options).json()
    (figures,) = result["perplexity"].values()
    return figures


# --- words and bytes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol, unscored", [("full", 1), ("llamacpp", 33)])
def test_words_and_bytes_are_those_of_the_scored_tokens(run, tiny_model, tiny_tokenizer, ascii_file, protocol, unscored):
    figures = measured(run, tiny_model("llama"), "--ppl", ascii_file, "--seqlen", 64, "--samples", 20, "--protocol", protocol)
    text = ascii_file.read_text()
    spans = tiny_tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    begins = [place for place, letter in enumerate(text) if not letter.isspace() and (place == 0 or text[place - 1].isspace())]
    scored = [spans[window * 64 + token] for window in range(20) for token in range(unscored, 64)]
    places = {place for first, end in scored for place in range(first, end)}
    assert figures["scored_tokens"] == len(scored)
    assert figures["scored_bytes"] == len(places)
    assert figures["scored_words"] == sum(place in places for place in begins)
    for level, units in [("word", figures["scored_words"]), ("byte", figures["scored_bytes"])]:
        assert figures[f"{level}_perplexity"] == pytest.approx(figures["value"] ** (len(scored) / units))
    assert 2 ** figures["bits_per_byte"] == pytest.approx(figures["byte_perplexity"])


def test_words_and_bytes_are_printed(run, tiny_model, ascii_file):
    shown = run("eval", tiny_model("llama"), "--ppl", ascii_file, "--seqlen", 64, "--samples", 4).stdout
    figures = measured(run, tiny_model("llama"), "--ppl", ascii_file, "--seqlen", 64, "--samples", 4)
    assert f"per word {figures['word_perplexity']:.4f}, per byte {figures['byte_perplexity']:.4f}" in shown


# --- data sets ------------------------------------------------------------------------------------------------


def write_c4(folder, documents):
    folder.mkdir(parents=True, exist_ok=True)
    with gzip.open(folder / C4, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text, "url": "u"}) + "\n" for text in documents)


def test_c4_is_measured_as_its_documents_in_a_file_are(run, tiny_model, tmp_path):
    documents = [make_text(3, seed=seed) for seed in range(40)]
    write_c4(tmp_path / "data" / "c4", documents)
    (tmp_path / "same.txt").write_text(" ".join(documents), encoding="utf-8")
    options = ["--seqlen", 64]
    found = measured(run, tiny_model("llama"), "--ppl", "c4", "--data-dir", tmp_path / "data", *options)
    assert found == measured(run, tiny_model("llama"), "--ppl", tmp_path / "same.txt", *options)


def test_c4_is_256_windows_unless_it_is_told(run, tiny_model, tmp_path):
    write_c4(tmp_path / "data", [make_text(3, seed=seed) for seed in range(60)])
    command = [tiny_model("llama"), "--ppl", "c4", "--data-dir", tmp_path / "data", "--seqlen", 8]
    assert measured(run, *command)["windows"] == 256
    assert measured(run, *command, "--samples", 300)["windows"] == 300
    assert measured(run, *command, "--ppl-range", ":")["windows"] > 300


def test_ptb_is_measured_as_its_rows_in_a_file_are(run, tiny_model, tmp_path):
    rows = make_text(200, seed=6).splitlines()
    (tmp_path / "ptb").mkdir()
    (tmp_path / "ptb" / "ptb.test.txt").write_text("".join(f" {row} \n" for row in rows), encoding="utf-8")
    (tmp_path / "same.txt").write_text(" ".join(row.strip() for row in rows), encoding="utf-8")
    found = measured(run, tiny_model("llama"), "--ppl", "ptb", "--seqlen", 64, env={"DYNSLICE_DATA_DIR": tmp_path})
    assert found == measured(run, tiny_model("llama"), "--ppl", tmp_path / "same.txt", "--seqlen", 64)


def test_ptb_comes_from_the_dataset_server_once(run, tiny_model, tmp_path):
    rows = make_text(230, seed=6).splitlines()
    (tmp_path / "same.txt").write_text(" ".join(row.strip() for row in rows), encoding="utf-8")
    server = Server([{"sentence": row} for row in rows])
    env = {"DYNSLICE_DATA_DIR": "", "DYNSLICE_CACHE": tmp_path / "cache", "DYNSLICE_DATASETS_SERVER": server.url, "HF_HUB_OFFLINE": ""}
    command = [tiny_model("llama"), "--seqlen", 64, "--ppl"]
    found = [measured(run, *command, "ptb", env=env) for _ in range(2)]
    assert found[0] == found[1] == measured(run, *command, tmp_path / "same.txt")
    assert [(query["dataset"], query["config"], query["split"], query["offset"]) for _, query, _ in server.requests] == [
        ("ptb-text-only/ptb_text_only", "penn_treebank", "test", offset) for offset in ("0", "100", "200")]
    server.change = lambda page: {**page, "rows": [{**row, "row": {"sentence": "two\nlines"}} for row in page["rows"]]}
    refused = run("eval", *command, "ptb:validation", env=env, expect=3).stderr
    assert "one line" in refused and not (tmp_path / "cache/datasets/ptb/ptb.valid.txt").exists()
    server.statuses = [404]
    assert "ptb/ptb.train.txt" in run("eval", *command, "ptb:train", env=env, expect=4).stderr
    server.server.shutdown()
    server.server.server_close()


def test_tasks_perplexity_and_divergence_in_one_run(run, tiny_model, text_file, tmp_path):
    (tmp_path / "piqa").mkdir()
    row = {"goal": "a house", "sol1": "on the river", "sol2": "of the king", "label": 0}
    (tmp_path / "piqa" / "validation.jsonl").write_text(json.dumps(row) + "\n")
    command = ["eval", tiny_model("llama"), "--tasks", "piqa", "--ppl", text_file, *WINDOWS, "--against", tiny_model("llama", seed=1), "--data-dir", tmp_path]
    both = run(*command, "--json").json()
    assert both["tasks"]["piqa"]["n"] == 1 and "stability" in both["tasks"]["piqa"]
    alone = run("eval", tiny_model("llama"), "--ppl", text_file, *WINDOWS, "--against", tiny_model("llama", seed=1), "--json").json()
    assert both["perplexity"] == alone["perplexity"] and both["divergence"] == alone["divergence"]
    assert run(*command, "--dry-run", "--json").json()["memory"]["parts"]["comparisons"] > 0


def test_slice_calibrates_on_c4(run, tiny_model, tmp_path):
    write_c4(tmp_path / "data" / "c4" / "en", [make_text(3, seed=seed) for seed in range(40)])
    done = run("slice", tiny_model("llama"), "--avg", "25%", "--calib", "c4", "--data-dir", tmp_path / "data", "--samples", 4,
               "--seqlen", 64, "-o", tmp_path / "out")
    assert "training split of c4 is not at hand" in done.stderr
    text = json.loads((tmp_path / "out" / "dynslice.json").read_text())["calibration"]
    assert text["name"] == "c4" and text["split"] == "validation" and text["file"].endswith(C4)


# --- against another model ------------------------------------------------------------------------------------

WINDOWS = ["--seqlen", 64, "--samples", 8]


def test_a_model_against_itself_is_the_same(run, tiny_model, text_file):
    model = tiny_model("llama")
    result = run("eval", model, "--ppl", text_file, *WINDOWS, "--against", model, "--json").json()
    alone = run("eval", model, "--ppl", text_file, *WINDOWS, "--json").json()
    found = result["divergence"][text_file.name]
    assert found["kl"]["maximum"] == found["kl"]["mean"] == 0
    assert found["same_top"] == {"value": 1, "stderr": 0} and found["ratio"]["value"] == 1
    figures, expected = result["perplexity"][text_file.name], alone["perplexity"][text_file.name]
    assert figures.keys() == expected.keys()
    assert figures["value"] == pytest.approx(expected["value"], rel=1e-6)
    assert found["perplexity"]["value"] == figures["value"] and result["against"] == str(model)


def test_divergence_is_that_of_transformers_logits(run, tiny_model, tiny_tokenizer, text_file, tmp_path):
    import torch
    import transformers

    reference, model = tiny_model("llama"), tmp_path / "sliced"
    run("slice", reference, "--avg", "25%", "--calib", text_file, *WINDOWS, "-o", model)
    found = run("eval", model, "--ppl", text_file, *WINDOWS, "--against", reference, "--json").json()["divergence"][text_file.name]
    ids = torch.tensor(tiny_tokenizer(text_file.read_text(encoding="utf-8"))["input_ids"][: 8 * 64]).view(8, 64)

    def log_probabilities(folder):
        loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
        with torch.no_grad():
            return loaded(ids).logits[:, :-1].double().log_softmax(-1)

    p, q = log_probabilities(reference), log_probabilities(model)
    kl = (p.exp() * (p - q)).sum(-1).flatten()
    losses = [-x.gather(2, ids[:, 1:, None]).flatten() for x in (q, p)]
    change = (-losses[0]).exp() - (-losses[1]).exp()
    assert found["kl"]["mean"] == pytest.approx(kl.mean().item(), rel=1e-4)
    assert found["kl"]["stderr"] == pytest.approx(kl.std().item() / kl.numel() ** 0.5, rel=1e-4)
    for name, level in [("p1", 0.01), ("p50", 0.5), ("p99", 0.99)]:
        assert found["kl"]["quantiles"][name] == pytest.approx(kl.quantile(level).item(), rel=1e-3)
    assert found["kl"]["median"] == found["kl"]["quantiles"]["p50"]
    assert found["same_top"]["value"] == pytest.approx((p.argmax(-1) == q.argmax(-1)).double().mean().item(), abs=0.004)
    assert found["log_ratio"]["value"] == pytest.approx((losses[0] - losses[1]).mean().item(), rel=1e-4)
    assert found["probability_change"]["mean"] == pytest.approx(change.mean().item(), rel=1e-3, abs=1e-6)
    assert found["rms_probability_change"]["value"] == pytest.approx(change.square().mean().sqrt().item(), rel=1e-4)


def test_the_table_says_what_the_json_does(run, tiny_model, text_file):
    command = ["eval", tiny_model("llama"), "--ppl", text_file, *WINDOWS, "--against", tiny_model("llama", seed=1)]
    shown, found = run(*command).stdout, run(*command, "--json").json()["divergence"][text_file.name]
    for words in (f"{found['kl']['mean']:.6f}", f"{found['ratio']['value']:.5f}", f"{100 * found['same_top']['value']:.3f}", "same top token", "of the reference"):
        assert words in shown, words


def test_less_memory_changes_a_divergence_by_rounding_only(run, tiny_model, text_file, tmp_path):
    command = ["eval", tiny_model("llama"), "--ppl", text_file, *WINDOWS, "--against", tiny_model("llama", seed=1), "--json"]
    told = run(*command, "--dry-run").json()
    assert told["memory"]["parts"]["streams"] == 2 * 8 * 64 * 64 * 4
    found = [run(*command, *more).json()["divergence"][text_file.name]["kl"] for more in ([], ["--activation-memory", "1", "--scratch-dir", tmp_path])]
    assert found[0] == found[1] and not list(tmp_path.iterdir())


def refused(run, code, *arguments):
    result = run("eval", *arguments, expect=code)
    assert result.stdout == ""
    return result.stderr.splitlines()[-1]


def test_models_of_different_vocabularies_are_not_compared(run, tiny_model, text_file):
    larger = tiny_model("llama", vocab_size=520)
    line = refused(run, 2, tiny_model("llama"), "--ppl", text_file, *WINDOWS, "--against", larger)
    assert "520" in line and "512" in line and str(larger) in line


def test_models_with_different_tokenizers_are_not_compared(run, tiny_model, text_file, tmp_path):
    other = shutil.copytree(tiny_model("llama"), tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:-20]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    line = refused(run, 2, tiny_model("llama"), "--ppl", text_file, *WINDOWS, "--against", other)
    assert "tokenizer" in line and str(other) in line and "token " in line


def test_a_model_to_compare_with_that_is_not_there_is_named(run, tiny_model, text_file, tmp_path):
    assert "nowhere" in refused(run, 4, tiny_model("llama"), "--ppl", text_file, *WINDOWS, "--against", tmp_path / "nowhere")
