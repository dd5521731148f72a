"""Dense models against transformers: logits, perplexity, layer scores."""

import json
import math
import subprocess

import numpy as np
import pytest
import torch
import transformers

WINDOW = 512


def our_logits(build_dir, tmp_path, checkpoint, ids):
    ids_file, out_file = tmp_path / "ids", tmp_path / "logits"
    np.asarray(ids, dtype=np.int32).tofile(ids_file)
    subprocess.run([build_dir / "bin" / "logits_main", checkpoint, ids_file, out_file], check=True)
    return torch.from_numpy(np.fromfile(out_file, dtype=np.float32)).view(len(ids), -1)


def their_logits(model, ids):
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0].float()


@pytest.fixture(scope="module")
def smol(dequantized):
    """The real model and its tokenizer in transformers."""
    network = transformers.AutoModelForCausalLM.from_pretrained(dequantized, dtype=torch.float32)
    return network.eval(), transformers.AutoTokenizer.from_pretrained(dequantized)


@pytest.fixture(scope="module")
def wikitext_ids(smol, data_dir):
    lines = (data_dir / "wikitext-2-raw" / "wiki.test.raw").read_text(encoding="utf-8").split("\n")[:-1]
    rows = ["" if not line.strip() else line + "\n" for line in lines]
    assert len(rows) == 4358 and sum(map(len, rows)) + 2 * (len(rows) - 1) == 1_294_336
    return smol[1]("\n\n".join(rows), return_tensors="pt").input_ids[0].tolist()


def test_the_real_models_logits_equal_transformers(build_dir, tmp_path, model, smol, wikitext_ids):
    ids = wikitext_ids[:WINDOW]
    difference = (our_logits(build_dir, tmp_path, model, ids) - their_logits(smol[0], ids)).abs().max().item()
    assert difference < 1e-3


def test_wikitext2_has_the_known_number_of_tokens(wikitext_ids, run, model):
    assert len(wikitext_ids) == 304_986
    result = run("eval", model, "--ppl", "wikitext2", "--samples", "1", "--seqlen", "16", "--json")
    assert json.loads(result.stdout)["provenance"]["text"]["stream_tokens"] == 304_986


def test_perplexity_equals_transformers(run, model, smol, wikitext_ids):
    windows, length = 2, 512
    losses = []
    with torch.inference_mode():
        for w in range(windows):
            ids = torch.tensor([wikitext_ids[w * length : (w + 1) * length]])
            losses.append(smol[0](ids, labels=ids).loss.item())
    theirs = math.exp(sum(losses) / windows)
    result = run("eval", model, "--ppl", "wikitext2", "--samples", str(windows), "--seqlen", str(length), "--json")
    ours = json.loads(result.stdout)["perplexity"]["wikitext2"]
    assert ours["windows"] == windows and ours["seqlen"] == length and ours["tokens"] == windows * length
    assert abs(ours["value"] / theirs - 1) < 5e-4


def mean_cosines(network, windows, last_normed):
    """The ten lines: mean over tokens of the cosine of a layer's input and output."""
    last = {}
    hook = network.model.norm.register_forward_pre_hook(lambda module, args: last.update(x=args[0]))
    sums = torch.zeros(network.config.num_hidden_layers, dtype=torch.float64)
    with torch.inference_mode():
        for ids in windows:
            states = list(network(torch.tensor([ids]), output_hidden_states=True).hidden_states)
            if not last_normed:
                states[-1] = last["x"]
            for i, (x, y) in enumerate(zip(states, states[1:])):
                sums[i] += torch.cosine_similarity(x[0].double(), y[0].double(), dim=-1).mean()
    hook.remove()
    return (sums / len(windows)).tolist()


@pytest.mark.parametrize("preset", [[], ["--preset", "paper"]], ids=["before the final norm", "after it"])
def test_layer_redundancy_equals_a_ten_line_script(run, model, smol, wikitext_ids, preset):
    windows = [wikitext_ids[i * WINDOW : (i + 1) * WINDOW] for i in range(2)]
    result = run("score", model, "--calib", "wikitext2:test", "--samples", "2", "--seqlen", str(WINDOW), "--json", *preset)
    ours = json.loads(result.stdout)
    assert ours["metric"] == "lr" and ours["more_important"] == "low" and ours["tokens"] == 2 * WINDOW
    theirs = mean_cosines(smol[0], windows, last_normed=bool(preset))
    assert np.abs(np.array(ours["values"]) - np.array(theirs)).max() < 1e-4


LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN_ROPE = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
LONG_ROPE = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 64,
             "short_factor": [1.0 + 0.1 * i for i in range(8)], "long_factor": [2.0 + 0.3 * i for i in range(8)]}  # fmt: skip
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}


@pytest.mark.parametrize(
    "kind, changes",
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"num_key_value_heads": 1}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("llama", {"rope_parameters": LLAMA3_ROPE}),
        ("llama", {"rope_parameters": LINEAR_ROPE}),
        ("llama", {"rope_parameters": YARN_ROPE}),
        ("llama", {"rope_parameters": {**YARN_ROPE, "attention_factor": 1.3, "beta_fast": 8.0, "beta_slow": 2.0, "truncate": False}}),
        ("llama", {"rope_parameters": {**YARN_ROPE, "mscale": 0.7, "mscale_all_dim": 1.2}}),
        ("llama", {"head_dim": 32}),
        ("mistral", {"sliding_window": 24}),
        ("mistral", {"sliding_window": None}),
        ("qwen2", {}),
        ("qwen2", {"tie_word_embeddings": True}),
        ("qwen3", {}),
        ("qwen3", {"tie_word_embeddings": True, "attention_bias": True, "num_key_value_heads": 1}),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 2}),
        ("gemma3_text", {}),
        ("gemma3_text", {"tie_word_embeddings": False, "query_pre_attn_scalar": 40, "num_key_value_heads": 1, "rope_parameters": {
            "full_attention": {**LINEAR_ROPE, "rope_theta": 1e5}, "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0}}}),
        ("smollm3", {}),
        ("smollm3", {"no_rope_layers": [0, 1, 1, 0], "tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}),
        ("seed_oss", {}),
        ("seed_oss", {"attention_bias": False, "attention_out_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
        ("gemma2", {}),
        ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None, "query_pre_attn_scalar": 40, "tie_word_embeddings": False}),
        ("ministral3", {}),
        ("ministral3", {"sliding_window": 24, "rope_parameters": YARN_ROPE | {"llama_4_scaling_beta": 0.3}}),
        ("olmo2", {}),
        ("olmo2", {"attention_bias": True, "num_key_value_heads": 4, "rope_parameters": LINEAR_ROPE}),
        ("olmo3", {}),
        ("olmo3", {"rope_parameters": {"full_attention": YARN_ROPE, "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0}}}),
        ("granite", {}),
        ("granite", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
        ("exaone4", {}),
        ("exaone4", {"layer_types": None, "tie_word_embeddings": True}),
        ("exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * 4}),
        ("hunyuan_v1_dense", {}),
        ("phi3", {}),
        ("phi3", {"sliding_window": 24, "tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.75}}),
        ("phi3", {"rope_parameters": LONG_ROPE}),  # longer than the original length
        ("phi3", {"rope_parameters": {**LONG_ROPE, "original_max_position_embeddings": 128, "partial_rotary_factor": 0.5, "long_factor": [1.5] * 4, "short_factor": [1.0, 1.1, 1.2, 1.3]}}),
        ("glm4", {}),
        ("glm4", {"attention_bias": False, "tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}}),
        ("opt", {}),
        ("opt", {"tie_word_embeddings": False}),
        ("qwen3_5_text", {}),
        ("qwen3_5_text", {"attention_bias": True, "tie_word_embeddings": True, "linear_num_key_heads": 4, "linear_key_head_dim": 12, "linear_value_head_dim": 10, "layer_types": ["full_attention", "linear_attention"] * 2}),
        ("gemma4_text", {}),
        ("gemma4_text", {"attention_k_eq_v": False, "num_global_key_value_heads": None, "attention_bias": True, "final_logit_softcapping": None, "use_bidirectional_attention": "vision"}),
        ("gemma4_text", {"tie_word_embeddings": False, "global_head_dim": 20, "layer_types": ["full_attention"] * 4, "rope_parameters": {
            "full_attention": {"rope_type": "proportional", "rope_theta": 1e5, "partial_rotary_factor": 0.5}, "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0}}}),
        ("hunyuan_v1_dense", {"attention_bias": True, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value) or "plain",
)
def test_tiny_models_logits_equal_transformers(build_dir, tmp_path, tiny_model, kind, changes):
    folder = tiny_model(kind, **changes)
    network = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    ids = torch.randint(network.config.vocab_size, (96,), generator=torch.Generator().manual_seed(0)).tolist()
    theirs = their_logits(network, ids)
    difference = (our_logits(build_dir, tmp_path, folder, ids) - theirs).abs().max().item()
    assert difference < 1e-3 and theirs.abs().max() > 0.1


@pytest.mark.parametrize("kind, changes", [("llama", {}), ("llama", {"tie_word_embeddings": True}),
                                           ("llama", {"attention_bias": True, "mlp_bias": True}), ("mistral", {}), ("qwen2", {}), ("qwen3", {}), ("smollm3", {}), ("seed_oss", {"attention_out_bias": True}),
                                           ("opt", {}), ("opt", {"tie_word_embeddings": False}), ("qwen3_5_text", {})],
                         ids=lambda value: value if isinstance(value, str) else ",".join(value) or "plain")
def test_rotation_without_slicing_leaves_the_logits(build_dir, tmp_path, run, tiny_model, text_file, kind, changes):
    folder = tiny_model(kind, **changes)
    out = tmp_path / "rotated"
    run("slice", folder, "--avg", "0%", "--allocate", "constant", "--calib", text_file, "--samples", "4", "--seqlen", "64",
        "--out-dtype", "fp32", "-o", out)
    ids = list(range(3, 90))
    before = our_logits(build_dir, tmp_path, folder, ids)
    after = our_logits(build_dir, tmp_path, out, ids)
    assert (after - before).abs().max().item() < 1e-3


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_shards_are_read(build_dir, tmp_path, tiny_model, dtype):
    folder = tiny_model("llama", dtype=dtype, max_shard_size="60KB")
    assert (folder / "model.safetensors.index.json").exists()
    network = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = list(range(40))
    assert (our_logits(build_dir, tmp_path, folder, ids) - their_logits(network, ids)).abs().max().item() < 1e-3
