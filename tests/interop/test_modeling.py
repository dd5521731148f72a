"""The modeling code that travels with sliced checkpoints, under the current transformers and one a year older."""

import json
import os
import pathlib
import sys

import pytest
import sliced_models
import torch

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
PYTHON_FILES = sorted((REPOSITORY / "src" / "model" / "python").glob("*_dynslice.py"))
CHECK = pathlib.Path(__file__).with_name("check_modeling.py")
LENGTH = 48


def window(seed=1):
    return torch.randint(sliced_models.VOCABULARY, (LENGTH,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Every hand-made case: folder and expected logits."""
    root = tmp_path_factory.mktemp("sliced")
    for name in sliced_models.CASES:
        config, tensors = sliced_models.write_sliced_model(name, root / name, PYTHON_FILES)
        logits = sliced_models.reference_logits(config, tensors, window())
        logits.float().numpy().tofile(root / f"{name}.logits")
    return root


@pytest.fixture(scope="module", params=["current", "old"])
def checked(request, made, tmp_path_factory, run_command):
    """What check_modeling.py finds, by case, and the folder where the saved models are. One process for all cases."""
    scratch = tmp_path_factory.mktemp(request.param)
    path = [str(pathlib.Path(__file__).parent)]
    if request.param == "old":
        old = os.environ.get("DYNSLICE_OLD_TRANSFORMERS")
        if not old:
            pytest.skip("SKIPPED: DYNSLICE_OLD_TRANSFORMERS is not set")
        path.insert(0, old)
    jobs = [{"folder": str(made / name), "ids": window(), "logits": str(made / f"{name}.logits"), "keep": str(scratch / name)}
            for name in sliced_models.CASES]  # fmt: skip
    (scratch / "jobs.json").write_text(json.dumps(jobs))
    run_command([sys.executable, CHECK, scratch / "jobs.json", scratch / "result.json"],
                env={"PYTHONPATH": os.pathsep.join(path), "HF_HOME": scratch / "hf", "HF_HUB_OFFLINE": "1"})  # fmt: skip
    result = json.loads((scratch / "result.json").read_text())
    assert result["transformers"].startswith("4." if request.param == "old" else "5.")
    return dict(zip(sliced_models.CASES, result["results"])), scratch


@pytest.fixture(params=sliced_models.CASES)
def found(request, checked):
    return request.param, checked[0][request.param]


def test_logits_are_those_of_the_mathematics(found):
    _, result = found
    assert result["scale"] > 1
    assert result["sdpa"] < 1e-3 and result["eager"] < 1e-3


def test_generation_with_a_cache_equals_generation_without(found):
    assert found[1]["generation"] == {key: True for key in ("cache", "no cache", "static cache", "batch, long", "batch, padded")}


def test_padding_on_the_left_changes_nothing(found):
    assert found[1]["padding"] < 1e-3


def test_outputs_are_those_that_transformers_promises(found):
    name, result = found
    layers = sliced_models.CASES[name][1]["layers"]
    last = sliced_models.HIDDEN if sliced_models.CASES[name][1]["head_rotation"] else layers[-1]["output_width"]
    assert result["states"] == [layer["input_width"] for layer in layers] + [last]
    assert result["attentions"] == [[1, layer["num_attention_heads"], LENGTH, LENGTH] for layer in layers]
    assert result["kept"] < 1e-4 and result["embeds"] < 1e-5 and result["tuple"]


def test_saving_and_loading_again_keeps_the_model_and_its_code(found):
    name, result = found
    tied = sliced_models.config_of(name)["tie_word_embeddings"]
    assert result["tied"] == tied
    assert result["round trip"] == {"equal": True, "code": True, "head stored": not tied, "tied": tied, "tied in config": True}


def test_the_model_can_be_trained(found):
    training = found[1]["training"]
    assert training["reached"] and training["loss"] < 1e-5 and training["checkpointed"] < 1e-5


def test_what_the_code_cannot_read_is_refused(made, tmp_path):
    import shutil

    import transformers

    for key, value, word in [("format", 3, "format"), ("base", "gpt2", "base_model_type"), ("rope", "yarn", "rope_type")]:
        folder = tmp_path / key
        shutil.copytree(made / "llama", folder)
        config = json.loads((folder / "config.json").read_text())
        if key == "format":
            config["dynslice"]["format"] = value
        elif key == "base":
            config["base_model_type"] = value
        else:
            config["rope_scaling"] = {"rope_type": value, "factor": 2.0}
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=word):
            transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
