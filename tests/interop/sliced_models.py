"""Sliced checkpoints made by hand from docs/cli.md's description of the format, and their logits in plain float64."""

import json
import math
import shutil

import torch
from safetensors.torch import save_file

HIDDEN, HEAD_DIM, VOCABULARY = 64, 16, 512
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}  # fmt: skip


def layer(widths, attn, mlp, heads=4, kv_heads=2, inner=96, norms=False):
    """One entry of dynslice.layers; attn and mlp are (kind, rank)."""
    return {
        "input_width": widths[0], "middle_width": widths[1], "output_width": widths[2], "intermediate_size": inner,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "attn_shortcut": dict(zip(("kind", "rank"), attn)), "mlp_shortcut": dict(zip(("kind", "rank"), mlp)),
        "norm_weights": norms,
    }  # fmt: skip


MATRIX, IDENTITY = ("matrix", 0), ("identity", 0)
CUT = [
    layer((40, 44, 48), MATRIX, ("symmetric", 5)),
    layer((48, 40, 40), ("low_rank", 3), IDENTITY, heads=2, kv_heads=1, inner=56),
    layer((40, 40, 56), ("symmetric", 7), ("low_rank", 4)),
    layer((56, 56, 64), IDENTITY, MATRIX, norms=True),
]
ALIKE = [layer((48, 48, 48), MATRIX, MATRIX), layer((48, 40, 48), ("low_rank", 0), ("symmetric", 0)), layer((48, 48, 48), MATRIX, MATRIX)]


def description(layers, final_norm=False, embedding_rotation=False, head_rotation=False, **more):
    return {
        "format": 2, "embedding_width": layers[0]["input_width"], "head_width": layers[-1]["output_width"],
        "final_norm_weight": final_norm, "embedding_rotation": embedding_rotation, "head_rotation": head_rotation,
        **more, "layers": layers,
    }  # fmt: skip


# name: (base model, dynslice, further keys of config.json)
CASES = {
    "llama": ("llama", description(CUT), {}),
    "llama_tied_rotated": ("llama", description(CUT, True, True, True), {"tie_word_embeddings": True}),
    "llama_tied": ("llama", description(ALIKE), {"tie_word_embeddings": True}),
    "llama_biases": ("llama", description(CUT), {"attention_bias": True, "mlp_bias": True}),
    "llama_llama3": ("llama", description(CUT, True), {"rope_scaling": LLAMA3, "rope_theta": 5000.0}),
    "llama_linear": ("llama", description(ALIKE), {"rope_parameters": {"rope_type": "linear", "rope_theta": 7000.0, "factor": 2.0}}),
    "llama_divisors": ("llama", description(ALIKE, rope_frequency_divisors=[1.0, 1, 1, 2, 2.5, 3, 4, 8]), {}),
    "mistral": ("mistral", description(CUT), {"sliding_window": 9}),
    "mistral_no_window": ("mistral", description(ALIKE, head_rotation=True), {"sliding_window": None}),
    "qwen2": ("qwen2", description(CUT, embedding_rotation=True), {}),
    "qwen2_windows": ("qwen2", description(CUT), {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2}),
    "qwen3": ("qwen3", description(CUT), {"head_dim": HEAD_DIM, "tie_word_embeddings": False}),
    "qwen3_biases": ("qwen3", description(CUT, True), {"head_dim": HEAD_DIM, "attention_bias": True}),
}


def config_of(name):
    base, slicing, more = CASES[name]
    return {
        "architectures": ["DynsliceForCausalLM"], "model_type": "dynslice", "base_model_type": base,
        "auto_map": {"AutoConfig": "configuration_dynslice.DynsliceConfig", "AutoModelForCausalLM": "modeling_dynslice.DynsliceForCausalLM"},
        "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": 96, "num_hidden_layers": len(slicing["layers"]),
        "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_act": "silu", "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": None, "torch_dtype": "float32",
        **more, "dynslice": slicing,
    }  # fmt: skip


def tensor_shapes(config):
    slicing, base = config["dynslice"], config["base_model_type"]
    qkv_bias = base == "qwen2" or config.get("attention_bias", False)
    o_bias, mlp_bias = config.get("attention_bias", False), config.get("mlp_bias", False)
    first, last = slicing["embedding_width"], slicing["head_width"]
    shapes = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN if slicing["embedding_rotation"] else first)}
    if slicing["embedding_rotation"]:
        shapes["model.embed_rotation.weight"] = (first, HIDDEN)

    def linear(name, out, width, bias):
        shapes[name + ".weight"] = (out, width)
        if bias:
            shapes[name + ".bias"] = (out,)

    def shortcut(name, kind, out, width, rank):
        if kind == "matrix":
            shapes[name + ".weight"] = (out, width)
        if kind != "matrix" and rank == 0:
            return
        if kind in ("symmetric", "low_rank"):
            shapes[name + ".down.weight"] = (rank, width)
        if kind == "low_rank":
            shapes[name + ".up.weight"] = (out, rank)

    for i, shape in enumerate(slicing["layers"]):
        prefix = f"model.layers.{i}."
        enter, middle, leave = shape["input_width"], shape["middle_width"], shape["output_width"]
        heads, kv_heads, inner = shape["num_attention_heads"], shape["num_key_value_heads"], shape["intermediate_size"]
        linear(prefix + "self_attn.q_proj", heads * HEAD_DIM, enter, qkv_bias)
        linear(prefix + "self_attn.k_proj", kv_heads * HEAD_DIM, enter, qkv_bias)
        linear(prefix + "self_attn.v_proj", kv_heads * HEAD_DIM, enter, qkv_bias)
        linear(prefix + "self_attn.o_proj", middle, heads * HEAD_DIM, o_bias)
        if base == "qwen3":
            shapes[prefix + "self_attn.q_norm.weight"] = shapes[prefix + "self_attn.k_norm.weight"] = (HEAD_DIM,)
        linear(prefix + "mlp.gate_proj", inner, middle, mlp_bias)
        linear(prefix + "mlp.up_proj", inner, middle, mlp_bias)
        linear(prefix + "mlp.down_proj", leave, inner, mlp_bias)
        shortcut(prefix + "attn_shortcut", out=middle, width=enter, **shape["attn_shortcut"])
        shortcut(prefix + "mlp_shortcut", out=leave, width=middle, **shape["mlp_shortcut"])
        if shape["norm_weights"]:
            shapes[prefix + "input_layernorm.weight"] = (enter,)
            shapes[prefix + "post_attention_layernorm.weight"] = (middle,)
    if slicing["final_norm_weight"]:
        shapes["model.norm.weight"] = (last,)
    if slicing["head_rotation"]:
        shapes["model.head_rotation.weight"] = (HIDDEN, last)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (VOCABULARY, HIDDEN if slicing["head_rotation"] else last)
    return shapes


def random_tensors(config, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in tensor_shapes(config).items():
        values = torch.randn(shape, generator=generator)
        if len(shape) == 1:
            values = 0.2 * values + (1.0 if "norm" in name else 0.0)
        elif "embed_tokens" not in name:
            values *= shape[-1] ** -0.5
        tensors[name] = values.contiguous()
    return tensors


def write_sliced_model(name, folder, python_files):
    """A checkpoint of the case `name`; returns its tensors."""
    config = config_of(name)
    tensors = random_tensors(config)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    for file in python_files:
        shutil.copy(file, folder)
    return config, tensors


# ---- The same mathematics, written down once more ---------------------------------------------------------------


def frequencies(config):
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    plain = [theta ** (-2 * j / HEAD_DIM) for j in range(HEAD_DIM // 2)]
    divisors = config["dynslice"].get("rope_frequency_divisors")
    kind = rope.get("rope_type", "default")
    result = []
    for j, f in enumerate(plain):
        if divisors:
            f /= divisors[j]
        elif kind == "linear":
            f /= rope["factor"]
        elif kind == "llama3":
            wavelength = 2 * math.pi / f
            original = rope["original_max_position_embeddings"]
            if wavelength > original / rope["low_freq_factor"]:
                f /= rope["factor"]
            elif wavelength > original / rope["high_freq_factor"]:
                smooth = (original / wavelength - rope["low_freq_factor"]) / (rope["high_freq_factor"] - rope["low_freq_factor"])
                f = (1 - smooth) * f / rope["factor"] + smooth * f
        result.append(f)
    return torch.tensor(result, dtype=torch.float64)


def windows(config):
    """Per layer: how many tokens a position sees, itself included; None for all."""
    count, base, window = len(config["dynslice"]["layers"]), config["base_model_type"], config.get("sliding_window")
    if base == "mistral":
        return [window] * count
    if base == "qwen2" and config.get("use_sliding_window"):
        return [window if i >= config["max_window_layers"] else None for i in range(count)]
    return [None] * count


def reference_logits(config, tensors, ids):
    """[tokens, vocabulary] in float64, one head and one token at a time where that is clearer."""
    w = {name: values.double() for name, values in tensors.items()}
    slicing = config["dynslice"]

    def norm(x, name):
        y = x / (x.square().sum(-1, keepdim=True) / HIDDEN + config["rms_norm_eps"]).sqrt()
        return y * w[name] if name in w else y

    def head_norm(x, name):
        if name not in w:
            return x
        return w[name] * x / (x.square().mean(-1, keepdim=True) + config["rms_norm_eps"]).sqrt()

    def linear(x, name):
        y = x @ w[name + ".weight"].T
        return y + w[name + ".bias"] if name + ".bias" in w else y

    def shortcut(x, name, kind, out):
        if kind == "identity":
            return x
        if kind == "matrix":
            return x @ w[name + ".weight"].T
        padded = torch.cat((x, torch.zeros(len(x), max(0, out - x.shape[1]), dtype=x.dtype)), dim=1)[:, :out]
        if name + ".down.weight" not in w:
            return padded
        down = w[name + ".down.weight"]
        if kind == "low_rank":
            return padded + x @ down.T @ w[name + ".up.weight"].T
        padded[:, : x.shape[1]] -= x @ down.T @ down
        return padded

    angle = torch.arange(len(ids), dtype=torch.float64)[:, None] * frequencies(config)
    cos, sin = angle.cos(), angle.sin()

    def rope(x):
        a, b = x[:, : HEAD_DIM // 2], x[:, HEAD_DIM // 2 :]
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=1)

    x = w["model.embed_tokens.weight"][ids]
    if slicing["embedding_rotation"]:
        x = x @ w["model.embed_rotation.weight"].T
    for i, (shape, window) in enumerate(zip(slicing["layers"], windows(config))):
        prefix = f"model.layers.{i}."
        normed = norm(x, prefix + "input_layernorm.weight")
        q, k, v = (linear(normed, prefix + f"self_attn.{part}_proj").split(HEAD_DIM, dim=1) for part in "qkv")
        q, k = ([head_norm(head, prefix + f"self_attn.{part}_norm.weight") for head in heads] for part, heads in (("q", q), ("k", k)))
        visible = torch.ones(len(ids), len(ids)).tril().bool()
        if window is not None:
            visible &= ~torch.ones(len(ids), len(ids)).tril(-window).bool()
        group = shape["num_attention_heads"] // shape["num_key_value_heads"]
        heads = []
        for h, query in enumerate(q):
            scores = rope(query) @ rope(k[h // group]).T / math.sqrt(HEAD_DIM)
            heads.append(scores.masked_fill(~visible, -math.inf).softmax(-1) @ v[h // group])
        attended = linear(torch.cat(heads, dim=1), prefix + "self_attn.o_proj")
        x = attended + shortcut(x, prefix + "attn_shortcut", shape["attn_shortcut"]["kind"], shape["middle_width"])
        normed = norm(x, prefix + "post_attention_layernorm.weight")
        inner = torch.nn.functional.silu(linear(normed, prefix + "mlp.gate_proj")) * linear(normed, prefix + "mlp.up_proj")
        x = linear(inner, prefix + "mlp.down_proj") + shortcut(x, prefix + "mlp_shortcut", shape["mlp_shortcut"]["kind"], shape["output_width"])
    x = norm(x, "model.norm.weight")
    if slicing["head_rotation"]:
        x = x @ w["model.head_rotation.weight"].T
    return x @ w["model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"].T
