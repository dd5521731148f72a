"""What the library reads and writes, against gguf, safetensors and transformers."""

import json

import gguf
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

# Where the half-precision scales of a block are.
SCALES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
    "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
}  # fmt: skip


@pytest.fixture
def dump(helper, run_command):
    """dump("tensors" | "checkpoint", model, out): what the library reads, as 32-bit safetensors."""
    return lambda *arguments: run_command([helper("dequantize_main"), *arguments])


def finite_halves(rng, count):
    """Half-precision numbers of every size and sign, subnormals included, no NaN or Inf."""
    return rng.integers(0, 0x7C00, count).astype(np.uint16) | (rng.integers(0, 2, count).astype(np.uint16) << 15)


def random_blocks(name, rows, columns, rng):
    """Rows of random blocks of a type, as raw bytes."""
    kind = gguf.GGMLQuantizationType[name]
    values, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (rows * columns // values, size), dtype=np.uint8)
    for offset in SCALES.get(name, []):
        blocks[:, offset : offset + 2] = finite_halves(rng, len(blocks)).view(np.uint8).reshape(-1, 2)
    if name == "F16":
        blocks = finite_halves(rng, len(blocks)).view(np.uint8)
    if name == "BF16":
        blocks = (rng.standard_normal(len(blocks)).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    if name == "F32":
        blocks = rng.standard_normal(len(blocks)).astype(np.float32).view(np.uint8)
    return blocks.reshape(rows, columns // values * size)


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", *SCALES])
def test_every_block_type_is_decoded_bit_for_bit(name, tmp_path, dump):
    rng = np.random.default_rng(7)
    kind = gguf.GGMLQuantizationType[name]
    raw = random_blocks(name, 33, 512, rng)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("w", raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    dump("tensors", tmp_path / "m.gguf", tmp_path / "out")
    ours = load_file(tmp_path / "out" / "model.safetensors")["w"].numpy()
    theirs = gguf.dequantize(raw, kind)
    assert ours.shape == theirs.shape == (33, 512)
    assert np.array_equal(ours.view(np.uint32), theirs.view(np.uint32))


def small_model(model_type, **options):
    torch.manual_seed(3)
    config = transformers.AutoConfig.for_model(
        model_type, vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, bos_token_id=1, eos_token_id=2, **options,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for parameter in model.parameters():  # biases and norms are constants otherwise
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def logits(model):
    tokens = torch.arange(40).reshape(1, -1) * 7 % 61
    with torch.no_grad():
        return model(tokens).logits


def reload(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()


LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip

MODELS = {
    "llama": ("llama", {}),
    "llama_tied": ("llama", {"tie_word_embeddings": True}),
    "llama_biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama_wide_heads": ("llama", {"head_dim": 16}),
    "llama3": ("llama", {"rope_parameters": LLAMA3}),
    "mistral_window": ("mistral", {"sliding_window": 8}),
    "mistral": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 24}),
    "gemma3_text": ("gemma3_text", {"head_dim": 16, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}),
    "gemma4_text": ("gemma4_text", {"head_dim": 16, "global_head_dim": 24, "attention_k_eq_v": True, "num_global_key_value_heads": 1,
        "hidden_size_per_layer_input": 0, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}),
    "qwen2_window": ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
}


@pytest.mark.parametrize("name", MODELS)
def test_what_is_written_is_the_same_model_to_transformers(name, tmp_path, dump):
    model_type, options = MODELS[name]
    model = small_model(model_type, **options)
    model.save_pretrained(tmp_path / "in")
    dump("checkpoint", tmp_path / "in", tmp_path / "out", 20_000)
    assert (tmp_path / "out" / "model.safetensors.index.json").exists()
    again = reload(tmp_path / "out")
    assert again.config.model_type == model_type
    # A norm that is stored without the one that is added to it is rounded once.
    assert torch.allclose(logits(again), logits(model), rtol=0, atol=1e-4 if "gemma" in model_type else 0)


def test_bfloat16_and_half_weights_are_read_exactly(tmp_path, dump):
    for dtype in (torch.bfloat16, torch.float16):
        model = small_model("llama").to(dtype)
        source, out = tmp_path / f"in-{dtype}", tmp_path / f"out-{dtype}"
        model.save_pretrained(source)
        dump("checkpoint", source, out)
        ours = load_file(out / "model.safetensors")
        for key, value in load_file(source / "model.safetensors").items():
            assert torch.equal(ours[key], value.float()), key


def permute(weights, heads):
    """What the converter of llama models does to query and key rows."""
    return weights.reshape(heads, 2, -1, *weights.shape[1:]).swapaxes(1, 2).reshape(weights.shape)


GGUF_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "model.layers": "blk",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
}  # fmt: skip


def llama3_divisors(config):
    """rope_freqs.weight of a converted Llama 3: transformers' own frequencies, divided."""
    functions = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS
    scaled, _ = functions["llama3"](config, "cpu")
    half = len(scaled)
    plain = 1.0 / (config.rope_parameters["rope_theta"] ** (torch.arange(half).float() / half))
    return (plain / scaled).numpy().astype(np.float32)


def write_gguf(model, path):
    config, kind = model.config, model.config.model_type
    writer = gguf.GGUFWriter(path, kind)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    if config.rope_parameters["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_divisors(config))
    for key, value in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        name, array = key, value.numpy()
        for ours, theirs in GGUF_NAMES.items():
            name = name.replace(ours, theirs)
        if kind == "llama" and "q_proj" in key:
            array = permute(array, config.num_attention_heads)
        if kind == "llama" and "k_proj" in key:
            array = permute(array, config.num_key_value_heads)
        writer.add_tensor(name, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("name", ["llama", "llama_tied", "llama_biases", "llama_wide_heads", "llama3", "qwen2", "qwen3"])
def test_a_gguf_file_is_the_same_model_to_transformers(name, tmp_path, dump):
    model_type, options = MODELS[name]
    model = small_model(model_type, **options)
    write_gguf(model, tmp_path / "m.gguf")
    dump("checkpoint", tmp_path / "m.gguf", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == [type(model).__name__]
    again = reload(tmp_path / "out")
    assert again.config.rms_norm_eps == model.config.rms_norm_eps
    state = again.state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(state[key], value), key
    assert torch.equal(logits(again), logits(model))


def test_a_real_model_is_decoded_bit_for_bit(model, tmp_path, dump):
    dump("tensors", model, tmp_path / "out")
    ours = load_file(tmp_path / "out" / "model.safetensors")
    tensors = gguf.GGUFReader(model).tensors
    assert len(ours) == len(tensors)
    for tensor in tensors:
        theirs = gguf.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(ours[tensor.name].numpy().view(np.uint32), theirs.view(np.uint32)), tensor.name
