"""The modeling code that travels with sliced checkpoints, under the current transformers and one a year older."""

import json
import os
import pathlib
import shutil
import sys

import numpy as np
import pytest
import sliced_models
import torch
import transformers

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
PYTHON_FILES = sorted((REPOSITORY / "src" / "model" / "python").glob("*_dynslice.py"))
CHECK = pathlib.Path(__file__).with_name("check_modeling.py")
LENGTH = 48


LLAMA3 = {"rope_type": "llama3", "rope_theta": 5000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}  # fmt: skip
# What dynslice makes itself: (family, changes of the tiny model, options of slice).
SLICED = {
    "sliced llama": ("llama", {"rope_parameters": LLAMA3}, ["--avg", "25%"]),
    "sliced llama, tied": ("llama", {"tie_word_embeddings": True}, ["--avg", "25%", "--allocate", "constant"]),
    "sliced llama, tied, head": ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}, ["--avg", "25%", "--slice-head"]),
    "sliced mistral, head": ("mistral", {"sliding_window": 9}, ["--avg", "30%", "--slice-head"]),
    "sliced qwen2": ("qwen2", {"tie_word_embeddings": True}, ["--avg", "12%", "--round-to", "1"]),
    "sliced smollm3": ("smollm3", {}, ["--avg", "25%"]),
    "sliced seed_oss": ("seed_oss", {"attention_out_bias": True, "attention_dropout": 0.0}, ["--avg", "25%"]),
    "sliced granite": ("granite", {}, ["--avg", "25%"]),
    "sliced ministral3": ("ministral3", {}, ["--avg", "25%"]),
    "sliced phi3": ("phi3", {"rope_parameters": {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 16,
        "short_factor": [1.0 + 0.1 * i for i in range(8)], "long_factor": [2.0 + 0.3 * i for i in range(8)]}}, ["--avg", "25%"]),
    "sliced opt": ("opt", {}, ["--avg", "25%"]),
    "sliced opt, untied, head": ("opt", {"tie_word_embeddings": False}, ["--avg", "25%", "--slice-head"]),
    "rotated opt": ("opt", {}, ["--avg", "0%", "--allocate", "constant"]),
    "unequal opt": ("opt", {}, ["--method", "modular", "--avg", "25%", "--allocate", "loss", "--round-to", "8"]),
    "sliced qwen3_5": ("qwen3_5_text", {}, ["--avg", "25%"]),
    "unequal qwen3_5": ("qwen3_5_text", {}, ["--method", "modular", "--avg", "25%", "--allocate", "loss", "--round-to", "8"]),
    "unequal gemma4": ("gemma4_text", {}, ["--method", "modular", "--avg", "25%", "--allocate", "loss", "--round-to", "8"]),
    "unequal gemma4, own values": ("gemma4_text", {"attention_k_eq_v": False, "num_global_key_value_heads": None, "attention_bias": True},
        ["--method", "modular", "--avg", "25%", "--allocate", "loss", "--round-to", "8"]),
    "sliced hunyuan": ("hunyuan_v1_dense", {}, ["--avg", "25%"]),
    "sliced qwen3": ("qwen3", {"tie_word_embeddings": True}, ["--avg", "25%"]),
}
READ_AGAIN = ["llama_tied_rotated", "llama_llama3", "mistral_no_window", "qwen2_windows", "qwen3_biases", "sliced llama, tied, head"]
NAMES = [*sliced_models.CASES, *SLICED]


def window(seed=1):
    return torch.randint(sliced_models.VOCABULARY, (LENGTH,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.fixture(scope="module")
def our_logits(helper, run_command, tmp_path_factory):
    """our_logits(folder, file): what dynslice computes for the window, written to the file and returned."""
    ids = tmp_path_factory.mktemp("ids") / "ids"
    np.asarray(window(), dtype=np.int32).tofile(ids)

    def compute(folder, file):
        run_command([helper("logits_main"), folder, ids, file])
        return torch.from_numpy(np.fromfile(file, dtype=np.float32)).view(LENGTH, -1)

    return compute


@pytest.fixture(scope="module")
def made(tmp_path_factory, run, tiny_model, text_file, our_logits):
    """Every case: folder and expected logits, those of the mathematics for hand-made ones and else dynslice's."""
    root = tmp_path_factory.mktemp("sliced")
    for name in sliced_models.CASES:
        config, tensors = sliced_models.write_sliced_model(name, root / name, PYTHON_FILES)
        logits = sliced_models.reference_logits(config, tensors, window())
        logits.float().numpy().tofile(root / f"{name}.logits")
    for name, (family, changes, options) in SLICED.items():
        run("slice", tiny_model(family, **changes), *options, "--calib", text_file, "--samples", "4", "--seqlen", "64", "-o", root / name)
        our_logits(root / name, root / f"{name}.logits")
    return root


@pytest.mark.parametrize("name", sliced_models.CASES)
def test_dynslice_computes_the_same_logits(name, made, our_logits, tmp_path):
    expected = torch.from_numpy(np.fromfile(made / f"{name}.logits", dtype=np.float32)).view(LENGTH, -1)
    assert (our_logits(made / name, tmp_path / "logits") - expected).abs().max() < 1e-3


def test_sliced_folders_carry_the_code_and_ordinary_ones_do_not(made, run, tiny_model, text_file, helper, run_command, tmp_path):
    for file in PYTHON_FILES:
        assert (made / "sliced llama" / file.name).read_bytes() == file.read_bytes()
    config = json.loads((made / "sliced llama" / "config.json").read_text())
    assert config["auto_map"] == sliced_models.config_of("llama")["auto_map"]
    run_command([helper("dequantize_main"), "checkpoint", tiny_model("llama"), tmp_path / "ordinary"])
    config = json.loads((tmp_path / "ordinary" / "config.json").read_text())
    assert "auto_map" not in config and config["architectures"] == ["LlamaForCausalLM"]
    # A sliced model that is sliced no further is written by nobody; one that is read and written stays what it is.
    run_command([helper("dequantize_main"), "checkpoint", made / "sliced llama", tmp_path / "again"])
    assert json.loads((tmp_path / "again" / "config.json").read_text())["auto_map"] == sliced_models.config_of("llama")["auto_map"]


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
            for name in NAMES]  # fmt: skip
    (scratch / "jobs.json").write_text(json.dumps(jobs))
    run_command([sys.executable, CHECK, scratch / "jobs.json", scratch / "result.json"],
                env={"PYTHONPATH": os.pathsep.join(path), "HF_HOME": scratch / "hf", "HF_HUB_OFFLINE": "1"})  # fmt: skip
    result = json.loads((scratch / "result.json").read_text())
    assert result["transformers"].startswith("4." if request.param == "old" else "5.")
    return dict(zip(NAMES, result["results"])), scratch


@pytest.fixture(params=NAMES)
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


def test_outputs_are_those_that_transformers_promises(found, made):
    name, result = found
    config = json.loads((made / name / "config.json").read_text())
    slicing = config["dynslice"]
    layers = slicing["layers"]
    last = sliced_models.HIDDEN if slicing["head_rotation"] else layers[-1]["output_width"]
    assert result["states"] == [layer["input_width"] for layer in layers] + [last]
    attending = [layer for layer, kind in zip(layers, config.get("layer_types") or [None] * len(layers)) if kind != "linear_attention"]
    assert result["attentions"] == [[1, layer["num_attention_heads"], LENGTH, LENGTH] for layer in attending]
    assert result["kept"] < 1e-4 and result["embeds"] < 1e-5 and result["tuple"]


def test_saving_and_loading_again_keeps_the_model_and_its_code(found, made, checked, our_logits, tmp_path):
    name, result = found
    tied = json.loads((made / name / "config.json").read_text())["tie_word_embeddings"]
    assert result["tied"] == tied
    assert result["round trip"] == {"equal": True, "code": True, "head stored": not tied, "tied": tied, "tied in config": True}

    if name not in READ_AGAIN:
        return
    # What transformers saved is a checkpoint to dynslice too.
    expected = torch.from_numpy(np.fromfile(made / f"{name}.logits", dtype=np.float32)).view(LENGTH, -1)
    assert (our_logits(checked[1] / name / "saved", tmp_path / "logits") - expected).abs().max() < 1e-3


def test_the_model_can_be_trained(found):
    training = found[1]["training"]
    assert training["reached"] and training["loss"] < 1e-5 and training["checkpointed"] < 1e-5


def test_what_the_code_cannot_read_is_refused(made, tmp_path):
    for key, value, word in [("format", 3, "format"), ("base", "gpt2", "base_model_type"), ("rope", "longrope", "rope_type")]:
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
