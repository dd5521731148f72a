"""`dynslice depth` against transformers: what it writes is what Python would have made of the same layers."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_export import llama_cpp_perplexity, our_perplexity
from transformers import AutoModelForCausalLM

CALIBRATION = ["--samples", "6", "--seqlen", "64"]


def their_logits(folder, window, **options):
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", **options)(window).logits


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma3_text", "smollm3", "seed_oss", "gemma2", "olmo3", "granite", "exaone4", "phi3", "opt", "qwen3_5_text", "gemma4_text"])
def test_a_model_without_layers_is_that_of_transformers_without_them(run, tiny_model, our_logits, window, tmp_path, family):
    # transformers wants a layer with keys and values.
    kinds = {"layer_types": ["linear_attention", "full_attention"] * 2 + ["full_attention"]} if family == "qwen3_5_text" else {}
    source = tiny_model(family, num_hidden_layers=5, **kinds)
    run("depth", "drop", source, "--indices", "1,3-3", "-o", tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="eager")
    decoder = getattr(model.model, "decoder", model.model)
    decoder.layers = torch.nn.ModuleList(layer for i, layer in enumerate(decoder.layers) if i not in (1, 3))
    for i, layer in enumerate(decoder.layers):
        (layer.linear_attn if hasattr(layer, "linear_attn") else layer.self_attn).layer_idx = i
    model.config.num_hidden_layers = 3
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [kind for i, kind in enumerate(model.config.layer_types) if i not in (1, 3)]
    with torch.no_grad():
        expected = model(window, use_cache=False).logits
    assert (their_logits(tmp_path / "out", window) - expected).abs().max() < 1e-4
    assert (our_logits(tmp_path / "out") - expected).abs().max() < 1e-3
    assert not list((tmp_path / "out").glob("*.py"))  # an ordinary checkpoint


@pytest.mark.parametrize("rule", ["sum", "mean", "last"])
def test_merged_layers_are_those_that_python_merges(run, tiny_model, text_file, our_logits, window, tmp_path, rule):
    source = tiny_model("llama", num_hidden_layers=6)
    done = run("depth", "merge", source, "--target-layers", "4", "--merge-rule", rule, "--calib", text_file, *CALIBRATION,
               "--out-dtype", "fp32", "-o", tmp_path / "out", "--json").json()
    plan = done["plan"]["layers"]
    assert len(plan) == 4 and sum(map(len, plan)) == 6 and done["layers"] == {"before": 6, "after": 4}
    before, after = load_file(source / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    for new, old in enumerate(plan):
        for name in [n for n in after if n.startswith(f"model.layers.{new}.")]:
            suffix = name.split(".", 3)[3]
            parts = [before[f"model.layers.{layer}.{suffix}"].float() for layer in old]
            expected = {"sum": parts[0] + sum(part - parts[0] for part in parts[1:]), "mean": sum(parts) / len(parts), "last": parts[-1]}[rule]
            assert torch.allclose(after[name].float(), expected, rtol=0, atol=1e-5), name
    assert (our_logits(tmp_path / "out") - their_logits(tmp_path / "out", window)).abs().max() < 1e-3


def test_repaired_models_are_loaded_by_transformers(run, tiny_model, text_file, our_logits, window, tmp_path):
    source = tiny_model("llama", num_hidden_layers=6)
    for replace, options in [("none", {}), ("linear", {}), ("linear-stream", {"trust_remote_code": True})]:
        out = tmp_path / replace
        done = run("depth", "streamline", source, "--layers", "2", "--replace", replace, "--calib", text_file, *CALIBRATION,
                   "-o", out, "--json").json()
        assert len(done["removed"]) == 2 and done["layers"]["after"] == 4
        assert (our_logits(out) - their_logits(out, window, **options)).abs().max() < 1e-3
        assert bool(list(out.glob("*.py"))) == (replace == "linear-stream")


def test_the_record_tells_the_whole_story(run, tiny_model, text_file, tmp_path):
    source = tiny_model("llama", num_hidden_layers=6)
    calibration = ["--calib", text_file, *CALIBRATION]
    run("depth", "streamline", source, "--ratio", "30%", *calibration, "-o", tmp_path / "shallow")
    run("slice", tmp_path / "shallow", "--avg", "20%", *calibration, "-o", tmp_path / "sliced")
    record = json.loads((tmp_path / "sliced" / "dynslice.json").read_text())
    assert record["method"] == "slice"
    assert record["source_record"]["method"] == "depth streamline"
    assert record["source_record"]["layers"] == {"before": 6, "after": 4}
    assert run("eval", tmp_path / "sliced", "--ppl", text_file, *CALIBRATION, "--json").json()


def test_llama_cpp_runs_a_repaired_model(run, run_command, model, wikitext_start, llama_perplexity, tmp_path):
    text = wikitext_start
    out, file = tmp_path / "out", tmp_path / "out.gguf"
    run("depth", "streamline", model, "--layers", "3", "--window", "22", "--calib", text, "--samples", "4", "--seqlen", "256", "-o", out)
    run("export", out, "--gguf", "--type", "f32", "-o", file)
    theirs = llama_cpp_perplexity(run_command, llama_perplexity, file, text, 2, 256)
    assert our_perplexity(run, out, text, 2, 256) == pytest.approx(theirs, rel=0.005)


def unbiased_hsic(k, l):
    n = len(k)
    k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))
    return (np.trace(k @ l) + k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k @ l).sum()) / (n * (n - 3))


def test_cka_is_what_numpy_computes_from_the_streams_of_transformers(run, tiny_model, tiny_tokenizer, text_file, tmp_path):
    folder = tiny_model("llama", num_hidden_layers=5)
    scores = run("score", folder, "--metric", "cka", "--calib", text_file, "--samples", "3", "--seqlen", "100", "--matrix",
                 tmp_path / "cka.svg", "--json").json()
    ids = tiny_tokenizer(text_file.read_text(encoding="utf-8"))["input_ids"][:300]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    outputs = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda module, inputs, output: outputs.append(output[0] if isinstance(output, tuple) else output))
    with torch.no_grad():
        first = model.model.embed_tokens(torch.tensor(ids).view(3, 100))
        model(torch.tensor(ids).view(3, 100))
    streams = [x.double().numpy() for x in (first, *outputs)]
    grams = [[x @ x.T for x in stream] for stream in streams]
    hsic = np.array([[sum(unbiased_hsic(k, l) for k, l in zip(a, b)) for b in grams] for a in grams])
    cka = hsic / np.sqrt(np.outer(np.diag(hsic), np.diag(hsic)))
    np.testing.assert_allclose(scores["values"], np.diag(cka, 1), atol=1e-4)
    np.testing.assert_allclose(scores["matrix"], cka[1:, 1:], atol=1e-4)
    assert (tmp_path / "cka.svg").read_text().count("<title>") == 25
