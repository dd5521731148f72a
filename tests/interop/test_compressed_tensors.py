"""Checkpoints whose linears are packed integers: what the compressed-tensors package writes, dynslice reads."""

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from conftest import randomize, tiny_config

REQUIRED = ("weight_packed", "weight_scale", "weight_shape")


def quantized(dtype):
    """A tiny Llama as the package packs it: layers of 8, 4 and 3 bits, with and without zero points."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (QuantizationArgs, QuantizationConfig, QuantizationScheme,
                                                 QuantizationStatus, apply_quantization_config)
    from compressed_tensors.quantization.utils import calculate_qparams

    def scheme(targets, **weights):
        return QuantizationScheme(targets=targets, weights=QuantizationArgs(type="int", **weights))

    model = transformers.AutoModelForCausalLM.from_config(tiny_config("llama"))
    randomize(model, seed=3)
    model.to(dtype)
    groups = {
        "others": scheme(["Linear"], num_bits=4, symmetric=False, strategy="group", group_size=32),
        "first": scheme([r"re:model\.layers\.[01]\..*"], num_bits=8, symmetric=True, strategy="group", group_size=16),
        "three": scheme(["model.layers.2.mlp.down_proj", "re:.*3.self_attn.*"], num_bits=3, symmetric=True, strategy="channel"),
        "uneven": scheme(["model.layers.3.mlp.down_proj"], num_bits=5, symmetric=False, strategy="channel"),
    }
    apply_quantization_config(model, QuantizationConfig(config_groups=groups, ignore=["lm_head"]))
    for module in model.modules():
        arguments = getattr(getattr(module, "quantization_scheme", None), "weights", None)
        if arguments is None:
            continue
        weight = module.weight.data.float()
        blocks = weight.view(weight.shape[0], -1, arguments.group_size or weight.shape[1])
        scale, zero = calculate_qparams(blocks.amin(-1), blocks.amax(-1), arguments)
        module.weight_scale.data = scale.to(dtype)
        if hasattr(module, "weight_zero_point"):
            module.weight_zero_point.data = zero.to(module.weight_zero_point.dtype)
        module.quantization_status = QuantizationStatus.FROZEN
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    return model, compressor


@pytest.fixture(scope="module", params=["float32", "bfloat16", "float16"])
def packed(request, tmp_path_factory, tiny_tokenizer):
    """-> folder, dtype of the scales"""
    folder = tmp_path_factory.mktemp("packed")
    dtype = getattr(torch, request.param)
    model, compressor = quantized(dtype)
    model.save_pretrained(folder)
    compressor.update_config(folder)
    tiny_tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert {group["weights"]["num_bits"] for group in config["config_groups"].values()} == {3, 4, 5, 8}
    assert f"model.layers.2.mlp.up_proj.{REQUIRED[0]}" in load_file(folder / "model.safetensors")
    return folder, dtype


def their_model(folder, dtype=torch.float32):
    config = transformers.CompressedTensorsConfig(dequantize=True)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, quantization_config=config).eval()


def difference_of_logits(ours, network, window):
    with torch.inference_mode():
        return (ours - network(window).logits.float()).abs().max().item()


def test_logits_equal_transformers(packed, our_logits, window):
    # Sums of a few hundred products of fp32 in another order.
    assert difference_of_logits(our_logits(packed[0]), their_model(packed[0]), window) < 1e-4


def test_weights_equal_the_packages_to_the_last_bit(packed, run, tmp_path):
    folder, dtype = packed
    run("depth", "drop", folder, "--indices", "0", "-o", tmp_path / "out")
    ours = load_file(tmp_path / "out" / "model.safetensors")
    theirs = their_model(folder, dtype).state_dict()
    for name, values in ours.items():
        parts = name.split(".")
        if parts[1] == "layers":
            parts[2] = str(int(parts[2]) + 1)
        expected = theirs[".".join(parts)]
        assert values.dtype == dtype and torch.equal(values, expected), name


def test_what_is_written_is_not_packed(packed, run, text_file, tmp_path):
    text = ["--calib", text_file, "--samples", "2", "--seqlen", "64"]
    for name, command in {"dropped": ["depth", "drop", packed[0], "--layers", "1", *text],
                          "sliced": ["slice", packed[0], "--avg", "25%", *text]}.items():
        run(*command, "-o", tmp_path / name)
        assert "quantization_config" not in json.loads((tmp_path / name / "config.json").read_text())
        run("eval", tmp_path / name, "--ppl", text_file, "--samples", "1", "--seqlen", "64")
    network = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "dropped")
    assert network.config.num_hidden_layers == 3 and not hasattr(network.config, "quantization_config")


def test_perplexity_of_the_packed_and_the_unpacked_model_are_the_same(packed, run, text_file, tmp_path):
    folder, _ = packed
    network = their_model(folder)
    shutil.copytree(folder, tmp_path / "plain")
    config = json.loads((tmp_path / "plain" / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "plain" / "config.json").write_text(json.dumps(config))
    kept = {name: values.contiguous() for name, values in network.state_dict().items()
            if not name.endswith((*REQUIRED, "weight_zero_point"))}
    save_file(kept, tmp_path / "plain" / "model.safetensors", metadata={"format": "pt"})
    measure = ["--ppl", text_file, "--samples", "4", "--seqlen", "128", "--json"]
    values = [run("eval", where, *measure).json()["perplexity"][text_file.name]["value"] for where in (folder, tmp_path / "plain")]
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_inspect_counts_packed_bytes(packed, run):
    folder, dtype = packed
    facts = run("inspect", folder, "--json").json()
    stored = load_file(folder / "model.safetensors")
    assert facts["bytes"] == sum(v.nbytes for name, v in stored.items() if not name.endswith("weight_shape"))
    assert set(facts["bytes_by_dtype"]) == {"I3", "I4", "I5", "I8", {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}[str(dtype)[6:]]}


def whole_codes(values, bits):
    """Rows of codes as versions before 0.20 packed them: 32 // bits of them in every word, none across two."""
    in_word = 32 // bits
    values = torch.nn.functional.pad(values, (0, -values.shape[1] % in_word)).to(torch.int64)
    words = (values.view(values.shape[0], -1, in_word) << (torch.arange(in_word) * bits)).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32).contiguous()


def test_files_of_older_versions_give_the_same_logits(packed, our_logits, tmp_path):
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    folder, _ = packed
    shutil.copytree(folder, tmp_path / "old")
    tensors, bits = load_file(folder / "model.safetensors"), {}
    bits["model.layers.2.mlp.down_proj"] = 3
    bits["model.layers.3.mlp.down_proj"] = 5
    bits.update({f"model.layers.3.self_attn.{name}_proj": 3 for name in "qkvo"})
    for module, width in bits.items():
        shape = tensors[f"{module}.weight_shape"].tolist()
        codes = unpack_from_int32(tensors[f"{module}.weight_packed"], width, torch.Size(shape)).to(torch.int64) + 2 ** (width - 1)
        tensors[f"{module}.weight_packed"] = whole_codes(codes, width)
    module, width = "model.layers.3.mlp.down_proj", 5
    rows = tensors[f"{module}.weight_scale"].shape
    zeros = unpack_from_int32(tensors[f"{module}.weight_zero_point"], width, torch.Size(rows), packed_dim=0).to(torch.int64)
    tensors[f"{module}.weight_zero_point"] = whole_codes(zeros.T + 2 ** (width - 1), width).T.contiguous()
    assert tensors[f"{module}.weight_packed"].shape != load_file(folder / "model.safetensors")[f"{module}.weight_packed"].shape
    # And zero points that are not packed at all.
    module, width = "model.layers.2.mlp.up_proj", 4
    rows = tensors[f"{module}.weight_scale"].shape
    zeros = unpack_from_int32(tensors[f"{module}.weight_zero_point"], width, torch.Size(rows), packed_dim=0)
    tensors[f"{module}.weight_zero_point"] = zeros.to(torch.int8).contiguous()
    save_file(tensors, tmp_path / "old" / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(our_logits(tmp_path / "old"), our_logits(folder))
