"""`dynslice slice --basis global` and `layer` against transformers, the gguf package and llama.cpp."""

import pytest
import torch
from safetensors.torch import load_file
from test_export import field, llama_cpp_perplexity, our_perplexity
from test_modular import FAMILIES, their_logits
from transformers import AutoConfig


@pytest.fixture
def cut(run, tiny_model, text_file, tmp_path):
    """cut(family, *options): a sliced checkpoint of a tiny model."""

    def make(name, *options):
        family, changes = FAMILIES[name]
        out = tmp_path / "out"
        run("slice", tiny_model(family, **changes), "--avg", "25%", "--calib", text_file, "--samples", "6", "--seqlen", "64", *options, "-o", out)
        return out

    return make


@pytest.mark.parametrize("name", FAMILIES)
def test_one_basis_is_an_ordinary_model_to_transformers(name, cut, our_logits, window):
    out = cut(name, "--basis", "global")
    config = AutoConfig.from_pretrained(out)
    assert config.model_type == FAMILIES[name][0] and config.hidden_size == 48 and config.head_dim == 16
    assert config.tie_word_embeddings == ("tied" in name)
    assert (our_logits(out) - their_logits(out, window)).abs().max() < 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_a_basis_a_layer_loads_with_the_modeling_code(name, cut, our_logits, window):
    out = cut(name, "--basis", "layer")
    assert (our_logits(out) - their_logits(out, window, trust_remote_code=True)).abs().max() < 1e-3


@pytest.mark.parametrize("name", ["llama", "llama, tied", "mistral"])
def test_llama_cpp_runs_one_basis(name, cut, run, run_command, helper, text_file, tmp_path, llama_perplexity):
    out, file = cut(name, "--basis", "global"), tmp_path / "m.gguf"
    assert run("export", out, "--gguf", "-o", file, "--json").json()["architecture"] == "llama"
    assert field(file, "llama.embedding_length") == 48 and field(file, "llama.attention.key_length") == 16
    theirs = llama_cpp_perplexity(run_command, llama_perplexity, file, text_file, 4, 128)
    assert theirs == pytest.approx(our_perplexity(run, out, text_file, 4, 128), rel=5e-4)
    assert our_perplexity(run, file, text_file, 4, 128) == pytest.approx(our_perplexity(run, out, text_file, 4, 128), rel=1e-5)
    run_command([helper("dequantize_main"), "checkpoint", file, tmp_path / "again"])
    before, after = load_file(out / "model.safetensors"), load_file(tmp_path / "again" / "model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
