"""`dynslice quantize` against transformers: packed checkpoints are loaded and compute what dynslice computes."""

import gguf
import numpy as np
import pytest
import torch
from test_export import llama_cpp_perplexity, our_perplexity
from transformers import AutoModelForCausalLM

CALIBRATION = ["--samples", "6", "--seqlen", "64"]


def their_logits(folder, window, **options):
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)(window).logits


@pytest.mark.parametrize("options", [
    ["--bits", "8,4,3,2", "--order", "random"],
    ["--bits", "8,5", "--order", "random", "--symmetric"],
    ["--bits", "6,4", "--order", "random", "--group-size", "row"],
    ["--bits", "4", "--method", "rtn"],
])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma3_text", "smollm3", "seed_oss", "olmo2", "granite", "phi3", "opt", "qwen3_5_text", "gemma4_text"])
def test_transformers_loads_layers_of_different_bits(run, tiny_model, text_file, our_logits, window, tmp_path, family, options):
    # compressed-tensors cannot unpack zero points of so few rows that one word holds them.
    kinds = {"linear_num_value_heads": 32, "linear_value_head_dim": 16} if family == "qwen3_5_text" else {}
    source = tiny_model(family, num_hidden_layers=4, **kinds)
    run("quantize", source, *options, "--calib", text_file, *CALIBRATION, "--out-dtype", "fp32", "-o", tmp_path / "out")
    assert (our_logits(tmp_path / "out") - their_logits(tmp_path / "out", window)).abs().max() < 1e-3
    assert not list((tmp_path / "out").glob("*.py"))  # an ordinary checkpoint


def test_transformers_loads_a_sliced_model_that_is_quantized(run, tiny_model, text_file, our_logits, window, tmp_path):
    text = ["--calib", text_file, *CALIBRATION]
    run("slice", tiny_model("llama", num_hidden_layers=4), "--avg", "25%", *text, "-o", tmp_path / "sliced")
    run("quantize", tmp_path / "sliced", "--bits", "8,4", "--order", "zd", *text, "--out-dtype", "fp32", "-o", tmp_path / "out")
    theirs = their_logits(tmp_path / "out", window, trust_remote_code=True)
    assert (our_logits(tmp_path / "out") - theirs).abs().max() < 1e-3


def test_whole_values_are_an_ordinary_checkpoint(run, tiny_model, text_file, our_logits, window, tmp_path):
    text = ["--calib", text_file, *CALIBRATION]
    run("quantize", tiny_model("llama"), "--bits", "3", *text, "--fake-quant", "--out-dtype", "fp32", "-o", tmp_path / "out")
    assert (our_logits(tmp_path / "out") - their_logits(tmp_path / "out", window)).abs().max() < 1e-3


@pytest.mark.parametrize("bits, types", [("8,5,4", []), ("6,3,2", []), ("8,5,4", ["--types", "q8_0,q5_1,q4_1"])])
def test_gguf_files_hold_what_their_blocks_say(run, tiny_model, text_file, our_logits, tmp_path, bits, types):
    """hidden_size 256 and intermediate_size 544: K formats in some matrices, their stand-ins in others."""
    source = tiny_model("llama", num_hidden_layers=3, hidden_size=256, intermediate_size=544)
    text = ["--calib", text_file, *CALIBRATION]
    done = run("quantize", source, "--gguf", "--bits", bits, *types, "--order", "random", *text, "-o", tmp_path / "out.gguf", "--json").json()
    reader = gguf.GGUFReader(tmp_path / "out.gguf")
    decoded = {tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    kinds = {tensor.tensor_type.name for tensor in reader.tensors if tensor.name.startswith("blk.") and len(tensor.shape) == 2}
    assert len(kinds) == (3 if types else 5)
    assert done["bytes"]["after"] == sum(tensor.n_bytes for tensor in reader.tensors)
    # Written whole from the file, the model is the same one.
    run("export", tmp_path / "out.gguf", "--gguf", "--type", "f32", "-o", tmp_path / "whole.gguf")
    for tensor in gguf.GGUFReader(tmp_path / "whole.gguf").tensors:
        np.testing.assert_array_equal(gguf.dequantize(tensor.data, tensor.tensor_type), decoded[tensor.name], err_msg=tensor.name)
    assert not (tmp_path / "out.gguf.blocks").exists()


def test_llama_cpp_runs_a_quantized_gguf_file(run, run_command, model, wikitext_start, llama_perplexity, tmp_path):
    text, file = wikitext_start, tmp_path / "out.gguf"
    run("quantize", model, "--gguf", "--bits", "8,5,4", "--order", "zd", "--embeddings", "q8_0", "--calib", text, "--samples", "4",
        "--seqlen", "256", "-o", file)
    theirs = llama_cpp_perplexity(run_command, llama_perplexity, file, text, 4, 256)
    assert our_perplexity(run, file, text, 4, 256) == pytest.approx(theirs, rel=0.01)
