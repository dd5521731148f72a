"""`dynslice models`: every cell of its table is what the program does."""

import pathlib
import re

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
MODEL_TYPES = re.findall(r'\.model_type = "(\w+)"', (REPOSITORY / "src" / "model" / "architecture.cpp").read_text())
CALIBRATION = ["--samples", "4", "--seqlen", "32"]
EXPORTABLE = {"smollm3": {"no_rope_layer_interval": 4},  # llama.cpp knows no other
              "exaone4": {"sliding_window": None, "layer_types": ["full_attention"] * 4}}  # fmt: skip
DONE, REFUSED, NO_FORM = 0, 2, 3
NOT_IN_LLAMA_CPP = ["opt"]
OF_TWO_KINDS_OF_LAYERS = ["qwen3_5_text", "gemma4_text"]  # no sum of which makes a layer


@pytest.fixture(scope="module")
def table(run):
    return {row["model_type"]: row for row in run("models", "--json").json()["models"]}


def architecture_of_gguf(path):
    from gguf import GGUFReader

    return GGUFReader(path).get_field("general.architecture").contents()


def test_the_table_has_a_row_for_every_architecture(run, table):
    assert list(table) == MODEL_TYPES
    shown = run("models").stdout
    for name, row in table.items():
        assert re.search(rf"^{name} +{row['class']} +{row['gguf'] or 'no'} ", shown, re.MULTILINE)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_cell_is_what_the_program_does(run, tiny_model, text_file, tmp_path, table, model_type):
    row, model, text = table[model_type], tiny_model(model_type, **EXPORTABLE.get(model_type, {})), ["--calib", text_file, *CALIBRATION]
    assert row["class"] in (model / "config.json").read_text()

    done = run("slice", model, "--avg", "25%", *text, "-o", tmp_path / "slice", expect=None)
    assert done.code == (DONE if row["slice"] else REFUSED)
    done = run("depth", "streamline", model, "--layers", "1", "--replace", "linear", *text, "-o", tmp_path / "linear", expect=None)
    assert done.code == (DONE if row["streamline_linear"] else REFUSED)

    done = run("slice", model, "--method", "modular", "--avg", "25%", "--allocate", "loss", "--attention", "heads", *text, "--dry-run", expect=None)
    assert done.code == (DONE if row["heads"] else REFUSED)

    done = run("export", model, "--gguf", "-o", tmp_path / "model.gguf", expect=None)
    assert done.code == (NO_FORM if row["gguf"] is None else DONE)
    if row["gguf"] is not None:
        assert architecture_of_gguf(tmp_path / "model.gguf") == row["gguf"]
        assert run("inspect", tmp_path / "model.gguf", "--json").json()["layers"] == 4

    run("slice", model, "--method", "modular", "--avg", "25%", "--allocate", "loss", "--attention", "keep", "--round-to", "8",
        *text, "-o", tmp_path / "unequal")
    shapes = run("inspect", tmp_path / "unequal", "--json").json()["shapes"]
    assert len({shape["intermediate_size"] for shape in shapes}) > 1
    unequal = row["gguf_of_unequal_layers"]
    done = run("export", tmp_path / "unequal", "--gguf", "-o", tmp_path / "unequal.gguf", expect=None)
    assert done.code == (NO_FORM if unequal is None else DONE)
    assert unequal is None or architecture_of_gguf(tmp_path / "unequal.gguf") == unequal


@pytest.mark.parametrize("page", ["README.md", "docs/cli.md"])
def test_what_pages_name_is_what_is_supported(table, page):
    listed = re.search(r"\(?(?:by )?`model_type`\)?(?: \||:) (.*?),? and what dynslice wrote", (REPOSITORY / page).read_text(), re.DOTALL)
    assert listed and re.split(r",\s+", listed.group(1)) == list(table)


# What the table does not tell of works for all: (name, arguments behind the model). {text} and {out} are filled in.
EVERYWHERE = {
    "score": ["--metric", "lr"],
    "score bi": ["--metric", "bi"],
    "score angular": ["--metric", "angular"],
    "score cka": ["--metric", "cka"],
    "score lim": ["--metric", "lim"],
    "plan": ["--method", "modular", "--avg", "20%"],
    "depth merge": ["--target-layers", "3", "-o", "{out}"],
    "depth streamline": ["--layers", "1", "--replace", "layer", "--updates", "2", "-o", "{out}"],
    "depth streamline ffn": ["--layers", "1", "--replace", "ffn", "--updates", "2", "-o", "{out}"],
    "quantize": ["--bits", "8,4", "--gguf", "-o", "{out}.gguf"],
    "quantize packed": ["--bits", "8,4", "--symmetric", "-o", "{out}"],
}


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_verb_takes_every_row(run, tiny_model, text_file, tmp_path, model_type):
    model, text = tiny_model(model_type, **EXPORTABLE.get(model_type, {})), ["--calib", text_file, *CALIBRATION]
    if model_type in NOT_IN_LLAMA_CPP:
        assert run("quantize", model, *EVERYWHERE["quantize"][:-1], tmp_path / "none.gguf", *text, expect=NO_FORM).stderr
    for number, (name, arguments) in enumerate(EVERYWHERE.items()):
        if name == "quantize" and model_type in NOT_IN_LLAMA_CPP:
            continue
        if name == "depth merge" and model_type in OF_TWO_KINDS_OF_LAYERS:
            assert "depth drop" in run("depth", "merge", model, *arguments[:-1], tmp_path / "none", *text, expect=REFUSED).stderr
            continue
        verb = name.split()[:2] if name.startswith("depth") else name.split()[:1]
        done = run(*verb, model, *[str(one).format(out=tmp_path / f"out-{number}") for one in arguments], *text, "--json")
        assert done.json(), name
    healed, tuned = tmp_path / "healed", ["--text", text_file, *CALIBRATION, "--updates", "2", "--batch", "2", "--rank", "2"]
    run("heal", model, *tuned, "-o", healed)
    smaller = tmp_path / ("out-7" if model_type in OF_TWO_KINDS_OF_LAYERS else "out-6")
    run("heal", smaller, "--distill", model, "--text", text_file, *CALIBRATION, "--updates", "2", "--rank", "2", "-o", tmp_path / "distilled")
    shown = run("eval", healed, "--against", model, "--ppl", text_file, "--samples", "2", "--seqlen", "32", "--json").json()
    assert shown["perplexity"][text_file.name]["value"] > 1
    assert run("generate", healed, "--prompt", "a", "--max-tokens", "4", "--json").json()["ids"]
    assert run("compare", model, healed, "--ppl", text_file, "--samples", "2", "--seqlen", "32", "--no-speed", "--json").json()


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_tasks_take_every_row(run, tiny_model, data_dir, model_type):
    """Answers share the tokens of their question in one tree, whose attention is a kernel of its own."""
    shown = run("eval", tiny_model(model_type), "--tasks", "piqa", "--limit", "4", "--json").json()
    assert shown["tasks"]["piqa"]["n"] == 4 and data_dir.name in shown["tasks"]["piqa"]["data"]["file"]
