"""`dynslice slice --basis global` and `layer` against transformers, the gguf package and llama.cpp."""

import pytest
from conftest import tiny_config
from test_export import field
from test_modular import FAMILIES, is_the_same_model, their_logits  # noqa: F401
from transformers import AutoConfig


# Those that norm what is written, over the whole width, have no basis to cut; OPT would centre a narrower stream.
NORMED_BEHIND = ["gemma3", "gemma2", "olmo2", "olmo3", "exaone4", "glm4", "gemma4"]
CUT = [name for name in FAMILIES if name not in NORMED_BEHIND]
NARROWER = [name for name in CUT if name != "opt"]


@pytest.fixture
def cut(run, tiny_model, text_file, tmp_path):
    """cut(family, *options): a sliced checkpoint of a tiny model."""

    def make(name, *options):
        family, changes = FAMILIES[name]
        out = tmp_path / "out"
        run("slice", tiny_model(family, **changes), "--avg", "25%", "--calib", text_file, "--samples", "6", "--seqlen", "64", *options, "-o", out)
        return out

    return make


@pytest.mark.parametrize("name", NARROWER)
def test_one_basis_is_an_ordinary_model_to_transformers(name, cut, our_logits, window):
    out = cut(name, "--basis", "global")
    config, (family, changes) = AutoConfig.from_pretrained(out), FAMILIES[name]
    assert config.model_type == family and config.hidden_size == 48
    assert config.head_dim == getattr(tiny_config(family, **changes), "head_dim", 16)  # Qwen2's is hidden_size / heads
    assert config.tie_word_embeddings == tiny_config(family, **changes).tie_word_embeddings
    assert (our_logits(out) - their_logits(out, window)).abs().max() < 1e-3


@pytest.mark.parametrize("name", CUT)
def test_a_basis_a_layer_loads_with_the_modeling_code(name, cut, our_logits, window):
    out = cut(name, "--basis", "layer")
    assert (our_logits(out) - their_logits(out, window, trust_remote_code=True)).abs().max() < 1e-3


def test_layer_norms_forbid_one_narrower_stream(run, tiny_model, text_file, tmp_path):
    options = ["--avg", "25%", "--calib", text_file, "--samples", "4", "--seqlen", "64", "--basis", "global", "-o", tmp_path / "out"]
    refused = run("slice", tiny_model("opt"), *options, expect=2)
    assert "--basis block or layer" in refused.stderr and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["llama", "llama, tied", "mistral"])
def test_llama_cpp_runs_one_basis(name, cut, run, tmp_path, is_the_same_model):
    out, file = cut(name, "--basis", "global"), tmp_path / "m.gguf"
    assert run("export", out, "--gguf", "-o", file, "--json").json()["architecture"] == "llama"
    assert field(file, "llama.embedding_length") == 48 and field(file, "llama.attention.key_length") == 16
    is_the_same_model(out, file)
