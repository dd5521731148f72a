"""Language models beside other parts, as `Gemma3ForConditionalGeneration` and `Mistral3ForConditionalGeneration` store them."""

import json

import pytest
import torch
import transformers
from conftest import VOCABULARY, randomize
from safetensors.torch import load_file, save_file

TEXT = {"vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}  # fmt: skip
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32, "mscale": 1.0,
        "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}  # fmt: skip
CALIBRATION = ["--samples", "6", "--seqlen", "64"]


def config_of(family):
    if family == "gemma3":
        text = {"model_type": "gemma3_text", "sliding_window": 24, "query_pre_attn_scalar": 16, **TEXT}
        return transformers.Gemma3Config(text_config=text, vision_config={"model_type": "siglip_vision_model", **VISION}, mm_tokens_per_image=4)
    if family == "gemma4":
        text = {"model_type": "gemma4_text", "sliding_window": 24, "global_head_dim": 32, "attention_k_eq_v": True, "num_global_key_value_heads": 1,
                "hidden_size_per_layer_input": 0, **TEXT, "pad_token_id": 0}  # fmt: skip
        vision = {"model_type": "gemma4_vision", **VISION, "head_dim": 16, "num_key_value_heads": 2, "position_embedding_size": 64}
        return transformers.Gemma4Config(text_config=text, vision_config=vision, audio_config=None)
    if family == "qwen3_5":
        linear = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16}
        vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64, "num_position_embeddings": 16}
        return transformers.Qwen3_5Config(text_config={"model_type": "qwen3_5_text", **TEXT, **linear}, vision_config=vision)
    text = {"model_type": "ministral3", "rope_parameters": YARN, **TEXT}
    return transformers.Mistral3Config(text_config=text, vision_config={"model_type": "pixtral", **VISION}, tie_word_embeddings=family.endswith("tied"))


@pytest.fixture(scope="module")
def wrapped(tmp_path_factory, tiny_tokenizer):
    """wrapped("gemma3" | "mistral3" | "mistral3, tied"): a random model with a vision tower."""
    made = {}

    def make(family):
        if family not in made:
            made[family] = tmp_path_factory.mktemp("wrapped")
            model = transformers.AutoModelForImageTextToText.from_config(config_of(family))
            randomize(model, 3)
            model.save_pretrained(made[family])
            if family == "qwen3_5":  # heads that guess further tokens, which transformers leaves alone
                tensors = load_file(made[family] / "model.safetensors")
                tensors["mtp.fc.weight"] = torch.ones(64, 128)
                save_file(tensors, made[family] / "model.safetensors", metadata={"format": "pt"})
            tiny_tokenizer.save_pretrained(made[family])
            (made[family] / "preprocessor_config.json").write_text('{"do_resize": true}')
        return made[family]

    return make


def their_logits(folder, window):
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        return model(input_ids=window).logits


def other_parts(folder):
    return {name: value for name, value in load_file(folder / "model.safetensors").items() if "language_model." not in name and "lm_head" not in name}


@pytest.mark.parametrize("family", ["gemma3", "mistral3", "mistral3, tied", "qwen3_5", "gemma4"])
def test_logits_of_the_language_model_are_transformers(wrapped, our_logits, window, family):
    expected = their_logits(wrapped(family), window)
    assert (our_logits(wrapped(family)) - expected).abs().max() < 1e-3 and expected.abs().max() > 0.1


def test_names_of_either_order_are_read(wrapped, our_logits, tmp_path):
    source = wrapped("mistral3")
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = {}
    for name, value in load_file(source / "model.safetensors").items():
        renamed = name.replace("language_model.model.", "model.language_model.") if "model.layers" in name or "model.norm" in name or "embed" in name else name
        tensors[renamed.replace("language_model.lm_head", "lm_head") if "lm_head" in renamed else renamed] = value
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(our_logits(tmp_path), our_logits(source))


@pytest.mark.parametrize("family, command", [
    ("gemma3", ["slice", "--method", "modular", "--avg", "25%", "--allocate", "constant"]),
    ("gemma3", ["depth", "drop", "--indices", "1"]),
    ("mistral3", ["quantize", "--bits", "4", "--fake-quant"]),
    ("mistral3, tied", ["heal", "--updates", "2", "--batch", "2", "--rank", "2"]),
    ("gemma4", ["slice", "--method", "modular", "--avg", "25%", "--allocate", "constant"]),
    ("gemma4", ["depth", "drop", "--indices", "1"]),
    ("qwen3_5", ["slice", "--method", "modular", "--avg", "25%", "--allocate", "constant"]),
])  # fmt: skip
def test_what_stays_as_wide_keeps_all_other_parts_and_loads_whole(run, wrapped, our_logits, window, text_file, tmp_path, family, command):
    source, out = wrapped(family), tmp_path / "out"
    text = [] if "drop" in command else ["--text" if "heal" in command else "--calib", text_file, *CALIBRATION]
    verb, rest = (command[:2], command[2:]) if command[0] == "depth" else (command[:1], command[1:])
    run(*verb, source, *rest, *text, "--out-dtype", "fp32", "-o", out)
    assert (our_logits(out) - their_logits(out, window)).abs().max() < 1e-3
    before, after = other_parts(source), other_parts(out)
    assert before.keys() == after.keys() and len(before) > 10 and all(torch.equal(before[name], after[name]) for name in before)
    assert json.loads((out / "config.json").read_text())["architectures"] == json.loads((source / "config.json").read_text())["architectures"]
    assert (out / "preprocessor_config.json").read_text() == '{"do_resize": true}'
    shown = run("inspect", out, "--json").json()
    assert shown["beside"] == family.split(",")[0] and not list(out.glob("*.py"))


def test_shapes_of_their_own_are_a_language_model_alone(run, wrapped, our_logits, window, text_file, tmp_path):
    done = run("slice", wrapped("mistral3"), "--avg", "25%", "--calib", text_file, *CALIBRATION, "--out-dtype", "fp32", "-o", tmp_path / "out")
    assert "only the language model is written" in done.stderr
    assert not other_parts(tmp_path / "out").keys() & other_parts(wrapped("mistral3")).keys()
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32, trust_remote_code=True)
    with torch.no_grad():
        assert (our_logits(tmp_path / "out") - model(window).logits).abs().max() < 1e-3


def test_a_narrower_stream_is_an_ordinary_language_model_alone(run, wrapped, our_logits, window, text_file, tmp_path):
    run("slice", wrapped("mistral3"), "--avg", "25%", "--basis", "global", "--calib", text_file, *CALIBRATION, "--out-dtype", "fp32", "-o", tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    with torch.no_grad():
        assert (our_logits(tmp_path / "out") - model(window).logits).abs().max() < 1e-3


def test_gguf_files_hold_the_language_model(run, wrapped, our_logits, tmp_path):
    run("export", wrapped("gemma3"), "--gguf", "-o", tmp_path / "m.gguf")
    assert (our_logits(tmp_path / "m.gguf") - our_logits(wrapped("gemma3"))).abs().max() < 1e-4


@pytest.mark.parametrize("family", ["gemma3", "mistral3", "mistral3, tied", "gemma4"])
def test_packed_weights_of_the_language_model_load_beside_the_other_parts(run, wrapped, our_logits, window, text_file, tmp_path, family):
    source, out = wrapped(family), tmp_path / "out"
    run("quantize", source, "--bits", "8,4", "--order", "zd", "--calib", text_file, *CALIBRATION, "--out-dtype", "fp32", "-o", out)
    stored = load_file(out / "model.safetensors")
    packed = {name for name in stored if name.endswith("weight_packed")}
    assert len(packed) == 4 * 7 - (family == "gemma4") and all("language_model." in name for name in packed)
    before, after = other_parts(source), other_parts(out)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    difference = (our_logits(out) - our_logits(source)).abs().max()
    assert difference > 1e-3 and (our_logits(out) - their_logits(out, window)).abs().max() < 1e-3
    # What is made of it is whole again.
    run("depth", "drop", out, "--indices", "1", "--out-dtype", "fp32", "-o", tmp_path / "fewer")
    assert "quantization_config" not in (tmp_path / "fewer" / "config.json").read_text()
    assert (our_logits(tmp_path / "fewer") - their_logits(tmp_path / "fewer", window)).abs().max() < 1e-3


@pytest.mark.parametrize("family", ["gemma3", "mistral3", "qwen3_5", "gemma4"])
def test_peft_puts_an_adapter_on_the_language_model_alone(run, wrapped, window, text_file, tmp_path, family):
    from peft import PeftModel

    options = ["--text", text_file, *CALIBRATION, "--updates", "6", "--batch", "2", "--learning-rate", "0.003"]
    run("heal", wrapped(family), *options, "--adapter", "-o", tmp_path / "adapter")
    run("heal", wrapped(family), *options, "--out-dtype", "fp32", "-o", tmp_path / "merged")
    model = transformers.AutoModelForImageTextToText.from_pretrained(wrapped(family), dtype=torch.float32, attn_implementation="eager").eval()
    adapted = PeftModel.from_pretrained(model, tmp_path / "adapter")
    changed = {name for name, _ in adapted.named_parameters() if "lora_" in name}
    assert changed and all(".language_model.layers." in name for name in changed)
    assert len(changed) == len(load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    with torch.no_grad():
        logits = adapted(input_ids=window).logits
    assert (logits - their_logits(tmp_path / "merged", window)).abs().max() < 5e-4
    assert (logits - their_logits(wrapped(family), window)).abs().max() > 1e-3


def test_a_language_model_that_is_not_known_is_named(run, wrapped, tmp_path):
    config = json.loads((wrapped("gemma3") / "config.json").read_text())
    config["text_config"]["model_type"] = "qwen2_5_vl_text"
    (tmp_path / "config.json").write_text(json.dumps(config))
    refused = run("inspect", tmp_path, expect=3)
    assert "text_config" in refused.stderr and "qwen2_5_vl_text" in refused.stderr
