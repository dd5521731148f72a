"""`dynslice slice --method modular` against transformers, the gguf package and llama.cpp."""

import itertools
import json

import gguf
import pytest
import torch
from safetensors.torch import load_file
from test_export import NO_WINDOW, YARN, llama_cpp_perplexity, our_perplexity, same_values
from transformers import AutoConfig, AutoModelForCausalLM

FAMILIES = {
    "llama": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "mistral": ("mistral", {"rope_parameters": YARN}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "gemma3": ("gemma3_text", {}),
    "smollm3": ("smollm3", {"no_rope_layer_interval": 4}),
    "seed_oss": ("seed_oss", {}),
    "gemma2": ("gemma2", {}),
    "mistral3": ("ministral3", {}),
    "olmo2": ("olmo2", {}),
    "olmo3": ("olmo3", {}),
    "granite": ("granite", {}),
    "exaone4": ("exaone4", NO_WINDOW),
    "hunyuan-dense": ("hunyuan_v1_dense", {}),
    "phi3": ("phi3", {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}}),
    "glm4": ("glm4", {}),
    "opt": ("opt", {}),
    "qwen35": ("qwen3_5_text", {}),
    "gemma4": ("gemma4_text", {}),
}
# Those whose norms are of all heads together keep all of them, and so do gated delta nets.
OF_ONE_SIZE = ["qwen3", "gemma3", "smollm3", "seed_oss", "gemma2", "mistral3", "olmo2", "granite", "exaone4", "hunyuan-dense", "phi3", "glm4", "qwen35", "gemma4"]
WITH_HEADS = [name for name in FAMILIES if not name.startswith("olmo") and name != "qwen35"]


@pytest.fixture
def compress(run, tiny_model, text_file, tmp_path):
    """compress(family, allocator or "heads"): a compressed checkpoint of a tiny model."""

    def make(name, allocate):
        family, changes = FAMILIES[name]
        out, how = tmp_path / "out", ["--method", "modular", "--avg", "25%", "--allocate", allocate]
        # A query less for each key-value head, a key-value head less, and no attention at all, where that has no bias.
        if allocate == "heads":
            last = 1 if "attention_bias" in changes or name == "opt" else 0
            heads, kv_heads = [4, 2, 2, last], [4, 2, 2, last] if name == "opt" else [2, 2, 1, last]
            plan = {"method": "modular", "dims": [160, 128, 160, 96], "heads": heads, "kv_heads": kv_heads}
            (tmp_path / "plan.json").write_text(json.dumps(plan))
            how = ["--plan", tmp_path / "plan.json"]
        run("slice", tiny_model(family, **changes), *how, "--calib", text_file, "--samples", "6", "--seqlen", "64", "-o", out)
        return out

    return make


@pytest.fixture
def is_the_same_model(run, run_command, helper, text_file, tmp_path, llama_perplexity):
    """is_the_same_model(CHECKPOINT, FILE): to llama.cpp, and to us, to the bit."""

    def check(out, file):
        theirs = llama_cpp_perplexity(run_command, llama_perplexity, file, text_file, 4, 128)
        # Query rows in the wrong order, or sizes of the wrong layers, would change a random model's figure by more.
        assert theirs == pytest.approx(our_perplexity(run, out, text_file, 4, 128), rel=5e-4)
        assert our_perplexity(run, file, text_file, 4, 128) == pytest.approx(our_perplexity(run, out, text_file, 4, 128), rel=1e-5)
        run_command([helper("dequantize_main"), "checkpoint", file, tmp_path / "again"])
        before, after = load_file(out / "model.safetensors"), load_file(tmp_path / "again" / "model.safetensors")
        assert before.keys() == after.keys() and all(same_values(out, before[key], after[key]) for key in before)

    return check


def their_logits(folder, window, **options):
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", **options)
        return model(window).logits


@pytest.mark.parametrize("name", FAMILIES)
def test_equal_sizes_are_an_ordinary_model_to_transformers(name, compress, our_logits, window):
    out = compress(name, "constant")
    assert AutoConfig.from_pretrained(out).model_type == FAMILIES[name][0]
    assert (our_logits(out) - their_logits(out, window)).abs().max() < 1e-3


@pytest.mark.parametrize("name, average", [("llama", "75%"), ("qwen3", "75%"), ("gemma4", "66%")])  # more than neurons alone can give
def test_equal_heads_and_neurons_are_an_ordinary_model_to_transformers(name, average, run, tiny_model, text_file, our_logits, window, tmp_path):
    family, changes = FAMILIES[name]
    run("slice", tiny_model(family, **changes), "--method", "modular", "--uniform", "--avg", average, "--calib", text_file, "--samples", "8",
        "--seqlen", "64", "--out-dtype", "fp32", "-o", tmp_path / "out")
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert config.model_type == family and config.num_attention_heads < 4
    assert (our_logits(tmp_path / "out") - their_logits(tmp_path / "out", window)).abs().max() < 1e-3


@pytest.mark.parametrize("name, allocate", [*itertools.product(FAMILIES, ["loss"]), *itertools.product(WITH_HEADS, ["heads"])])
def test_other_sizes_load_with_the_modeling_code(name, allocate, compress, our_logits, window):
    out = compress(name, allocate)
    assert (our_logits(out) - their_logits(out, window, trust_remote_code=True)).abs().max() < 1e-3


@pytest.mark.parametrize("name, allocate", [*itertools.product(["llama", "llama, tied", "mistral"], ["constant", "loss", "heads"]),
                                            *itertools.product(OF_ONE_SIZE, ["constant"]), ("gemma4", "loss")])  # fmt: skip
def test_llama_cpp_runs_both(name, allocate, compress, run, tmp_path, is_the_same_model):
    out, file = compress(name, allocate), tmp_path / "m.gguf"
    shown = run("export", out, "--gguf", "-o", file, "--json").json()
    assert shown["architecture"] == (name if name in OF_ONE_SIZE else "deci" if allocate != "constant" else "llama")
    is_the_same_model(out, file)


def test_a_layer_without_attention_has_no_place_in_some_of_them(compress, run, tmp_path):
    refused = run("export", compress("gemma4", "heads"), "--gguf", "-o", tmp_path / "m.gguf", expect=3)
    assert "layer 3 has no attention" in refused.stderr and "gemma4" in refused.stderr


def test_gguf_names_the_sizes_layer_by_layer(compress, run, tmp_path):
    out = compress("mistral", "heads")
    run("export", out, "--gguf", "--type", "q8_0", "-o", tmp_path / "m.gguf")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    sizes = reader.fields["deci.feed_forward_length"].contents()
    rows = {tensor.name: tensor.shape[1] for tensor in reader.tensors if tensor.name.endswith("ffn_up.weight")}
    assert [rows[f"blk.{i}.ffn_up.weight"] for i in range(len(sizes))] == sizes
    assert reader.fields["deci.attention.head_count"].contents() == [4, 2, 2, 0]
    assert reader.fields["deci.attention.head_count_kv"].contents() == [2, 2, 1, 0]


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "gemma3"])
def test_what_llama_cpp_knows_with_one_size_alone_of_other_sizes_has_no_place_in_gguf(family, compress, run, tmp_path):
    done = run("export", compress(family, "loss"), "--gguf", "-o", tmp_path / "m.gguf", expect=3)
    assert "llama.cpp has room for" in done.stderr


def test_heads_that_are_normed_together_stay_together(run, tiny_model, text_file, tmp_path):
    source, out = tiny_model("olmo2"), tmp_path / "out"
    options = ["--method", "modular", "--calib", text_file, "--samples", "4", "--seqlen", "64", "-o", out]
    refused = run("slice", source, "--avg", "25%", "--allocate", "loss", "--attention", "heads", *options, expect=2)
    assert "olmo2" in refused.stderr and "--attention keep" in refused.stderr and not out.exists()
    (tmp_path / "plan.json").write_text(json.dumps({"method": "modular", "dims": [160] * 4, "heads": [4, 2, 4, 4], "kv_heads": [2] * 4}))
    refused = run("slice", source, "--plan", tmp_path / "plan.json", *options[2:], expect=3)
    assert "layer 1" in refused.stderr and "olmo2" in refused.stderr and not out.exists()
    run("slice", source, "--target", "params=15%", *options, "--json")
    shapes = run("inspect", out, "--json").json()["shapes"]
    assert {(shape["heads"], shape["key_value_heads"]) for shape in shapes} == {(4, 2)}


def test_a_model_that_norms_its_branches_has_no_basis_to_cut_nor_a_matrix_to_fold(run, tiny_model, text_file, tmp_path):
    source, text = tiny_model("gemma3_text"), ["--calib", text_file, "--samples", "4", "--seqlen", "64", "-o", tmp_path / "out"]
    for command, instead in [(["slice", source, "--avg", "25%"], "--method modular"), (["slice", source, "--avg", "25%", "--basis", "global"], "--method modular"),
                             (["depth", "streamline", source, "--layers", "1"], "--replace layer")]:  # fmt: skip
        refused = run(*command, *text, expect=2)
        assert instead in refused.stderr and "gemma3_text" in refused.stderr and not (tmp_path / "out").exists()


@pytest.mark.parametrize("replace", ["layer", "swiglu", "ffn", "none"])
def test_layers_of_a_model_that_norms_its_branches_are_replaced(replace, run, tiny_model, text_file, our_logits, window, tmp_path):
    trains = [] if replace == "none" else ["--updates", "2", "--batch", "2", "--out-dtype", "fp32"]
    run("depth", "streamline", tiny_model("gemma3_text", num_hidden_layers=5), "--layers", "1", "--replace", replace, *trains,
        "--calib", text_file, "--samples", "6", "--seqlen", "64", "-o", tmp_path / "out")  # fmt: skip
    ordinary = replace in ("layer", "none")
    assert (our_logits(tmp_path / "out") - their_logits(tmp_path / "out", window, trust_remote_code=not ordinary)).abs().max() < 1e-3
    assert bool(list((tmp_path / "out").glob("*.py"))) != ordinary
