"""What `dynslice heal` and trained replacements write, under peft, transformers and llama.cpp."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from test_export import llama_cpp_perplexity, our_perplexity
from transformers import AutoModelForCausalLM

TEXT = ["--samples", "20", "--seqlen", "64"]
QUICK = ["--updates", "6", "--batch", "4", "--learning-rate", "0.003"]


def load(folder, **options):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", **options)


def logits_of(model, window):
    with torch.no_grad():
        return model(window).logits


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma3_text", "smollm3", "gemma2", "olmo2", "granite", "hunyuan_v1_dense", "opt", "qwen3_5_text", "gemma4_text", "phi3", "glm4"])
def test_peft_loads_the_adapter_and_gives_the_merged_model(run, tiny_model, text_file, our_logits, window, tmp_path, family):
    # transformers wants a layer with keys and values.
    kinds = {"layer_types": ["linear_attention", "full_attention", "linear_attention"]} if family == "qwen3_5_text" else {}
    source = tiny_model(family, num_hidden_layers=3, **kinds)
    options = ["--text", text_file, *TEXT, *QUICK, "--rank", "5", "--alpha", "7"]
    if family == "gemma4_text":  # which has become worse after six
        options[options.index("--updates") + 1] = "20"
    run("heal", source, *options, "--adapter", "-o", tmp_path / "adapter")
    run("heal", source, *options, "--out-dtype", "fp32", "-o", tmp_path / "merged")
    adapted = PeftModel.from_pretrained(load(source), tmp_path / "adapter")
    assert adapted.peft_config["default"].r == 5 and adapted.peft_config["default"].lora_alpha == 7
    expected = logits_of(adapted, window)
    assert (expected - logits_of(load(source), window)).abs().max() > 0.05
    assert (logits_of(load(tmp_path / "merged"), window) - expected).abs().max() < 1e-4
    assert (our_logits(tmp_path / "merged") - expected).abs().max() < 1e-3


def test_an_adapter_of_some_linears_of_one_matrix_is_theirs_alone(run, tiny_model, text_file, window, tmp_path):
    source, options = tiny_model("phi3"), ["--text", text_file, *TEXT, *QUICK, "--target-modules", "q_proj,v_proj,up_proj"]
    run("heal", source, *options, "--adapter", "-o", tmp_path / "adapter")
    run("heal", source, *options, "--out-dtype", "fp32", "-o", tmp_path / "merged")
    adapted = PeftModel.from_pretrained(load(source), tmp_path / "adapter")
    assert adapted.peft_config["default"].rank_pattern == {"qkv_proj": 16}
    expected = logits_of(adapted, window)
    assert (expected - logits_of(load(source), window)).abs().max() > 0.01
    assert (logits_of(load(tmp_path / "merged"), window) - expected).abs().max() < 1e-4


def test_peft_loads_the_adapter_of_a_sliced_model(run, tiny_model, text_file, our_logits, window, tmp_path):
    source = tiny_model("llama", num_hidden_layers=3)
    run("slice", source, "--avg", "25%", "--calib", text_file, *TEXT, "-o", tmp_path / "sliced")
    options = ["--text", text_file, *TEXT, *QUICK]
    run("heal", tmp_path / "sliced", *options, "--adapter", "-o", tmp_path / "adapter")
    run("heal", tmp_path / "sliced", *options, "-o", tmp_path / "merged")
    base = load(tmp_path / "sliced", trust_remote_code=True)
    expected = logits_of(PeftModel.from_pretrained(base, tmp_path / "adapter"), window)
    assert (our_logits(tmp_path / "merged") - expected).abs().max() < 1e-3
    assert (logits_of(load(tmp_path / "merged", trust_remote_code=True), window) - expected).abs().max() < 1e-3


def test_updates_are_those_of_peft_and_torch(run, tiny_model, tiny_tokenizer, text_file, tmp_path):
    """One epoch of ours against the same batches, loss and optimizer in Python, from the same first values."""
    from safetensors.torch import load_file

    source = tiny_model("llama", num_hidden_layers=3)
    options = ["--text", text_file, "--samples", "5", "--seqlen", "64", "--batch", "4", "--held-out", "1", "--warmup", "0",
               "--learning-rate", "0.002", "--final-learning-rate", "0.002", "--clip", "0", "--rank", "4", "--adapter"]  # fmt: skip
    run("heal", source, *options, "--updates", "0", "-o", tmp_path / "start")
    done = run("heal", source, *options, "--updates", "5", "--validations", "5", "-o", tmp_path / "end", "--json").json()
    model = get_peft_model(load(source), LoraConfig(r=4, lora_alpha=16, target_modules=done["lora"]["target_modules"]))
    start = load_file(tmp_path / "start" / "adapter_model.safetensors")
    named = {name.replace(".default", ""): parameter for name, parameter in model.named_parameters() if "lora_" in name}
    assert set(start) == set(named)
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(start[name])
    ids = torch.tensor(tiny_tokenizer(text_file.read_text(encoding="utf-8"))["input_ids"][:320]).view(5, 64)
    optimizer = torch.optim.AdamW(named.values(), lr=0.002, weight_decay=0)
    losses = []
    for _ in range(5):  # every update sees all four windows
        with torch.no_grad():
            losses.append(model(ids[4:], labels=ids[4:]).loss.item())
        optimizer.zero_grad()
        model(ids[:4], labels=ids[:4]).loss.backward()
        optimizer.step()
    ours = [point["validation_loss"] for point in done["training"]["points"]]
    assert ours[:5] == pytest.approx(losses, rel=2e-4)
    assert ours[-1] < 0.99 * ours[0]


@pytest.mark.parametrize("replace, options", [("layer", {}), ("ffn", {"trust_remote_code": True}), ("swiglu", {"trust_remote_code": True})])
def test_trained_replacements_are_loaded_by_transformers(run, tiny_model, tiny_tokenizer, text_file, our_logits, window, tmp_path, replace, options):
    source = tiny_model("llama", num_hidden_layers=6)
    run("depth", "streamline", source, "--layers", "2", "--replace", replace, "--calib", text_file, *TEXT, *QUICK, "-o", tmp_path / "out")
    model = load(tmp_path / "out", **options)
    assert (our_logits(tmp_path / "out") - logits_of(model, window)).abs().max() < 1e-3
    assert bool(list((tmp_path / "out").glob("*.py"))) == bool(options)
    generated = model.generate(window[:, :8], max_new_tokens=8, do_sample=False, use_cache=True, pad_token_id=0)
    again = model.generate(window[:, :8], max_new_tokens=8, do_sample=False, use_cache=False, pad_token_id=0)
    assert torch.equal(generated, again)


def test_llama_cpp_runs_a_healed_model(run, run_command, model, wikitext_start, llama_perplexity, tmp_path):
    text = wikitext_start
    run("depth", "drop", model, "--indices", "20-22", "-o", tmp_path / "short")
    run("heal", tmp_path / "short", "--text", "wikitext2:validation", "--samples", "5", "--seqlen", "128", "--batch", "2", "--updates", "2", "-o", tmp_path / "out")
    run("export", tmp_path / "out", "--gguf", "--type", "f32", "-o", tmp_path / "out.gguf")
    theirs = llama_cpp_perplexity(run_command, llama_perplexity, tmp_path / "out.gguf", text, 2, 256)
    assert our_perplexity(run, tmp_path / "out", text, 2, 256) == pytest.approx(theirs, rel=0.005)
