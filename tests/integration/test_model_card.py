"""README.md of every output folder: a model card."""

import re
import shutil

import pytest
from huggingface_hub import ModelCard

TEXT = ["--samples", "4", "--seqlen", "32"]
CARD = """---
license: apache-2.0
license_link: https://example.org/license?x=1 # not plain
base_model: "someone/original"
tags:
- text
language:
- en
---
license: not-this
"""


def card_of(folder):
    card = ModelCard.load(folder / "README.md")
    return card.data, card.text


def with_card(model, folder, text):
    shutil.copytree(model, folder)
    (folder / "README.md").write_text(text)
    return folder


def test_a_card_says_what_the_hub_wants_and_how_it_was_made(run, tiny_model, text_file, tmp_path):
    source = with_card(tiny_model("llama"), tmp_path / "in", CARD)
    (source / "LICENSE").write_text("do as you like")
    run("slice", source, "--method", "modular", "--avg", "25%", "--allocate", "constant", "--calib", text_file, *TEXT, "-o", tmp_path / "small one")
    data, text = card_of(tmp_path / "small one")
    assert (data.base_model, data.to_dict()["base_model_relation"], data.library_name) == ("someone/original", "finetune", "transformers")
    assert data.pipeline_tag == "text-generation" and data.tags == ["dynslice", "modular"] and data.license == "apache-2.0"
    assert data.license_link is None and "not-this" not in text
    assert (tmp_path / "small one" / "LICENSE").read_text() == "do as you like"
    assert "# small one" in text and "AutoModelForCausalLM" in text and "trust_remote_code" not in text
    assert re.search(r"\| parameters \| [0-9.]+ k \| [0-9.]+ k \| -[0-9.]+% \|", text) and "4 windows of 32 tokens" in text
    command = next(line for line in text.splitlines() if line.startswith("dynslice slice "))
    assert "--avg 25%" in command and f"'{tmp_path / 'small one'}'" in command

    # What is made of it is made of the original model, too.
    run("quantize", tmp_path / "small one", "--bits", "4", "--method", "rtn", "-o", tmp_path / "quantized")
    data, text = card_of(tmp_path / "quantized")
    assert (data.base_model, data.to_dict()["base_model_relation"]) == ("someone/original", "quantized")
    assert data.tags == ["dynslice", "modular", "quantize-rtn"] and data.license == "apache-2.0"
    assert text.index("dynslice slice ") < text.index("dynslice quantize ") and "compressed-tensors" in text
    assert (tmp_path / "quantized" / "LICENSE").exists()


def test_code_of_its_own_and_adapters_are_loaded_in_other_ways(run, tiny_model, text_file, tmp_path):
    run("slice", tiny_model("llama"), "--avg", "25%", "--calib", text_file, *TEXT, "-o", tmp_path / "sliced")
    data, text = card_of(tmp_path / "sliced")
    assert "trust_remote_code=True" in text and data.base_model is None and data.license is None
    run("heal", tmp_path / "sliced", "--text", text_file, *TEXT, "--updates", "1", "--batch", "2", "--adapter", "-o", tmp_path / "adapter")
    data, text = card_of(tmp_path / "adapter")
    assert data.library_name == "peft" and 'PeftModel.from_pretrained(model, "adapter")' in text
    assert text.index("dynslice slice ") < text.index("dynslice heal ")
    run("depth", "drop", tiny_model("llama"), "--indices", "1", "-o", tmp_path / "fewer")
    data, text = card_of(tmp_path / "fewer")
    assert data.tags == ["dynslice", "depth-drop"] and "| layers | 4 | 3 |" in text


@pytest.mark.parametrize("card", [
    "---\nlicense: a: b\nbase_model: - x\n---\n",
    "---\nlicense: 'x\ny'\nbase_model: |\n  a\n  b\n",
    "license: apache-2.0\n",
    "---\nlicense: " + "a" * 300 + "\nbase_model: [a, b]\n---",
    "---\nlicense: \"a\\nb: c\"\nbase_model: {a: b}\n---\n",
    "\xff\x00---\nlicense: mit\n",
    "",
])  # fmt: skip
def test_nothing_but_plain_values_of_a_strange_card_is_carried_over(run, tiny_model, tmp_path, card):
    source = with_card(tiny_model("llama"), tmp_path / "in", card)
    run("depth", "drop", source, "--indices", "1", "-o", tmp_path / "out")
    data, _ = card_of(tmp_path / "out")
    assert data.license is None and data.base_model is None and data.library_name == "transformers"


def test_a_hub_id_is_the_base_model(run, tiny_model, tmp_path):
    commit = "0123456789" * 4
    repository = tmp_path / "hub" / "models--org--name"
    with_card(tiny_model("llama"), repository / "snapshots" / commit, "---\nlicense: mit\n---\n")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    offline = {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    run("depth", "drop", "org/name", "--indices", "1", "-o", tmp_path / "out", env=offline)
    data, text = card_of(tmp_path / "out")
    assert data.base_model == "org/name" and data.license == "mit" and "dynslice compare org/name out --kl" in text


def test_the_licence_of_a_gguf_file_is_carried_over(run, tiny_model, tmp_path):
    from gguf import GGUFReader, GGUFValueType, GGUFWriter

    run("export", tiny_model("llama"), "--gguf", "-o", tmp_path / "plain.gguf")
    reader = GGUFReader(tmp_path / "plain.gguf")
    writer = GGUFWriter(str(tmp_path / "m.gguf"), "llama")
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        writer.add_key_value(name, field.contents(), field.types[0], field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None)
    writer.add_license("cc-by-4.0")
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    run("depth", "drop", tmp_path / "m.gguf", "--indices", "1", "-o", tmp_path / "out")
    assert card_of(tmp_path / "out")[0].license == "cc-by-4.0"
