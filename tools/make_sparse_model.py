#!/usr/bin/env python3
"""Writes a synthetic Llama checkpoint of chosen shapes, for measuring memory and speed without a download.

    tools/make_sparse_model.py OUT [--preset llama-3-8b] [--layers N] [--random SEED]

Without --random the linear layers are zeros that take no disk: the file has holes where they are. Embedding and norms
are random all the same, since a stream of zeros would exercise nothing. With --random every weight is, of the scale
that keeps activations finite; the same seed gives the same bytes. Needs nothing beyond Python's standard library.

    tools/make_sparse_model.py /var/tmp/flat-64 --preset llama-3-8b --layers 64 --vocab 4096
    dynslice slice /var/tmp/flat-64 --avg 25% --samples 8 --seqlen 512
"""
import argparse
import array
import json
import os
import pathlib
import random
import struct
import sys

PRESETS = {
    # hidden, intermediate, heads, key-value heads, vocabulary, layers, tied, rope theta, longest context
    "llama-3-8b": (4096, 14336, 32, 8, 128256, 32, False, 500000.0, 8192),
    "llama-2-7b": (4096, 11008, 32, 32, 32000, 32, False, 10000.0, 4096),
    "smollm2-135m": (576, 1536, 9, 3, 49152, 30, True, 100000.0, 8192),
    "tiny": (64, 160, 4, 2, 1024, 4, False, 10000.0, 512),
}
FIELDS = ("hidden", "intermediate", "heads", "kv_heads", "vocab", "layers", "tied", "rope_theta", "context")
SHARD_BYTES = 5 * 1000**3
# A prime, so that no row of a matrix begins where another did: the block repeats, the rows do not.
BLOCK_VALUES = 1048573
LETTERS = "etaoinshrdlcumwfgypbvkjxqz"


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path, metavar="OUT", help="folder to write; it must not exist")
    parser.add_argument("--preset", choices=PRESETS, default="llama-3-8b", help="shapes to start from (default %(default)s)")
    for name, text in [("layers", "number of decoder layers"), ("hidden", "hidden size"), ("intermediate", "inner size of the MLP"),
                       ("heads", "attention heads"), ("kv-heads", "key and value heads"), ("vocab", "vocabulary, at least 257")]:
        parser.add_argument("--" + name, type=int, help=text)
    parser.add_argument("--tied", action=argparse.BooleanOptionalAction, help="whether the head is the embedding matrix")
    parser.add_argument("--random", type=int, metavar="SEED", help="fill every weight with repeatable random values")
    arguments = parser.parse_args()
    for field, value in zip(FIELDS, PRESETS[arguments.preset]):
        if getattr(arguments, field, None) is None:
            setattr(arguments, field, value)
    for name in ("layers", "hidden", "intermediate", "heads", "kv_heads"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if arguments.vocab < 257:
        parser.error("--vocab must be at least 257: one entry a byte and the end of text")
    if arguments.hidden % arguments.heads or arguments.hidden // arguments.heads % 2:
        parser.error("--hidden must be an even multiple of --heads")
    if arguments.heads % arguments.kv_heads:
        parser.error("--heads must be a multiple of --kv-heads")
    if arguments.out.exists():
        parser.error(f"{arguments.out} exists; choose another folder")
    return arguments


def bf16(values):
    """The bfloat16 bytes of an array of floats: the upper half of each fp32, cut off."""
    wide = array.array("f", values).tobytes()
    narrow = bytearray(len(wide) // 2)
    narrow[0::2], narrow[1::2] = wide[2::4], wide[3::4]
    return bytes(narrow)


class RandomBlocks:
    """One block of normal values, generated once, in as many scales as tensors ask for."""

    def __init__(self, seed):
        gauss = random.Random(seed).gauss
        self.values = [gauss(0.0, 1.0) for _ in range(BLOCK_VALUES)]
        self.scaled = {}

    def block(self, mean, deviation):
        key = (mean, deviation)
        if key not in self.scaled:
            self.scaled[key] = bf16([mean + deviation * value for value in self.values])
        return self.scaled[key]


def tensors(shape):
    """(name, [rows, columns], (mean, deviation), filled in a sparse model) of every tensor, in the order of a walk."""
    d, inner = shape.hidden, shape.intermediate
    kv = d // shape.heads * shape.kv_heads
    norm = (1.0, 0.1)
    yield "model.embed_tokens.weight", [shape.vocab, d], (0.0, 1.0), True
    for i in range(shape.layers):
        prefix = f"model.layers.{i}."
        yield prefix + "input_layernorm.weight", [d], norm, True
        for name, rows, columns in [("q_proj", d, d), ("k_proj", kv, d), ("v_proj", kv, d), ("o_proj", d, d)]:
            yield f"{prefix}self_attn.{name}.weight", [rows, columns], (0.0, columns**-0.5), False
        yield prefix + "post_attention_layernorm.weight", [d], norm, True
        for name, rows, columns in [("gate_proj", inner, d), ("up_proj", inner, d), ("down_proj", d, inner)]:
            yield f"{prefix}mlp.{name}.weight", [rows, columns], (0.0, columns**-0.5), False
    yield "model.norm.weight", [d], norm, True
    if not shape.tied:
        yield "lm_head.weight", [shape.vocab, d], (0.0, d**-0.5), False


def byte_count(sizes):
    count = 2
    for size in sizes:
        count *= size
    return count


def shards(all_tensors):
    groups, used = [[]], 0
    for tensor in all_tensors:
        size = byte_count(tensor[1])
        if groups[-1] and used + size > SHARD_BYTES:
            groups.append([])
            used = 0
        groups[-1].append(tensor)
        used += size
    return groups


def write_tiled(file, block, offset, length):
    """Writes `length` bytes of the endlessly repeated block, beginning at its byte `offset`."""
    view = memoryview(block)
    while length > 0:
        part = view[offset : offset + length]
        file.write(part)
        length -= len(part)
        offset = 0


def write_shard(path, group, blocks, everything):
    header, position = {"__metadata__": {"format": "pt"}}, 0
    for name, sizes, _, _ in group:
        header[name] = {"dtype": "BF16", "shape": sizes, "data_offsets": [position, position + byte_count(sizes)]}
        position += byte_count(sizes)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, sizes, scale, always in group:
            if everything or always:
                start = sum(name.encode()) * 7919 % BLOCK_VALUES * 2
                write_tiled(file, blocks.block(*scale), start, byte_count(sizes))
            else:
                file.seek(byte_count(sizes), os.SEEK_CUR)
        file.truncate(8 + len(text) + position)


def byte_symbols():
    """The printable character that byte-level BPE has for every byte (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{byte: chr(byte) for byte in printable}, **{byte: chr(256 + i) for i, byte in enumerate(others)}}


def tokenizer(vocab_size):
    """Byte-level BPE: the bytes, and pairs of letters as far as the vocabulary has room for them."""
    symbols = byte_symbols()
    vocabulary = {symbol: i for i, symbol in enumerate(symbols[byte] for byte in range(256))}
    merges = []
    for first in symbols[ord(" ")] + LETTERS:
        for second in LETTERS:
            if len(vocabulary) + 1 < vocab_size:
                merges.append(f"{first} {second}")
                vocabulary[first + second] = len(vocabulary)
    end = len(vocabulary)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return end, {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None,
        "added_tokens": [{"id": end, "content": "<|endoftext|>", "single_word": False, "lstrip": False, "rstrip": False,
                          "normalized": False, "special": True}],
        "pre_tokenizer": byte_level, "post_processor": None, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": vocabulary, "merges": merges},
    }


def model_config(shape, end_of_text):
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": shape.vocab, "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate, "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads, "hidden_act": "silu", "max_position_embeddings": shape.context,
        "rms_norm_eps": 1e-5, "rope_theta": shape.rope_theta, "rope_scaling": None, "attention_bias": False, "mlp_bias": False,
        "tie_word_embeddings": shape.tied, "bos_token_id": end_of_text, "eos_token_id": end_of_text, "torch_dtype": "bfloat16",
    }


def write_model(shape):
    shape.out.mkdir(parents=True)
    blocks = RandomBlocks(shape.random or 0)
    groups = shards(tensors(shape))
    weight_map, total = {}, 0
    for k, group in enumerate(groups):
        name = "model.safetensors" if len(groups) == 1 else f"model-{k + 1:05d}-of-{len(groups):05d}.safetensors"
        write_shard(shape.out / name, group, blocks, shape.random is not None)
        weight_map.update({tensor[0]: name for tensor in group})
        total += sum(byte_count(tensor[1]) for tensor in group)
    if len(groups) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (shape.out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    end_of_text, tokens = tokenizer(shape.vocab)
    (shape.out / "tokenizer.json").write_text(json.dumps(tokens, ensure_ascii=False), encoding="utf-8")
    (shape.out / "config.json").write_text(json.dumps(model_config(shape, end_of_text), indent=2))
    return total


def main():
    shape = parse_arguments()
    total = write_model(shape)
    on_disk = sum(path.stat().st_blocks * 512 for path in shape.out.iterdir())
    print(f"{shape.out}: {shape.layers} layers, {total / 1e9:.2f} GB of weights, {on_disk / 1e9:.2f} GB on disk")


if __name__ == "__main__":
    sys.exit(main())
