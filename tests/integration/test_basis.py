"""`dynslice slice --basis`: sizes, plans, what is refused, and that a plan file says it."""

import json

import pytest

WORK = ["--samples", "8", "--seqlen", "64"]


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model("llama", tie_word_embeddings=True)


@pytest.fixture
def cut(run, model, text_file):
    """cut(OUT or None, *options): the JSON of `slice`, or the Result when it must fail."""

    def make(out, *options, verb="slice", expect=0):
        where = ["-o", out] if out else []
        done = run(verb, model, "--calib", text_file, *WORK, *options, *where, "--json", expect=expect)
        return done.json() if expect == 0 else done

    return make


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def test_one_basis_gives_an_ordinary_checkpoint_of_one_width(cut, run, model, tmp_path):
    done = cut(tmp_path / "out", "--avg", "25%", "--basis", "global")
    assert done["plan"]["basis"] == "global" and done["plan"]["allocator"] == "constant"
    assert done["plan"]["dims"] == [48] * 4 and done["plan"]["head_width"] == 48
    config, before = config_of(tmp_path / "out"), config_of(model)
    assert config["model_type"] == "llama" and config["hidden_size"] == 48 and config["head_dim"] == 16 and "auto_map" not in config
    assert config["rms_norm_eps"] == pytest.approx(before["rms_norm_eps"] * 64 / 48, rel=1e-12)
    assert not list((tmp_path / "out").glob("*.py"))
    shown = run("inspect", tmp_path / "out", "--json").json()
    assert shown["parameters"] == done["parameters"]["after"] == done["parameters"]["before"] * 3 // 4


def test_a_basis_a_layer_saves_the_shortcuts_beside_attention(cut, tmp_path):
    done = cut(tmp_path / "out", "--avg", "25%", "--allocate", "constant", "--basis", "layer")
    block = cut(None, "--avg", "25%", "--allocate", "constant", verb="plan")
    assert done["plan"]["basis"] == "layer" and block["plan"]["basis"] == "block"
    assert done["parameters"]["after"] < block["parameters"]["after"]
    assert {layer["attn_shortcut"]["kind"] for layer in config_of(tmp_path / "out")["dynslice"]["layers"]} == {"identity"}


def test_a_target_is_met(cut):
    done = cut(None, "--target", "params=20%", "--basis", "global", "--round-to", "1", verb="plan")
    assert 1 - done["parameters"]["after"] / done["parameters"]["before"] == pytest.approx(0.2, abs=0.01)


def test_a_search_of_widths_meets_a_target_with_every_trial(cut):
    done = cut(None, "--target", "params=10%", "--allocate", "search", "--trials", "7", "--round-to", "1", verb="plan")
    assert 1 - done["parameters"]["after"] / done["parameters"]["before"] == pytest.approx(0.1, abs=0.01)
    trials = done["plan"]["provenance"]["search"]
    assert [trial.get("start") for trial in trials] == ["loss", "softmax", "lr", "blend", None, None, None]
    assert [trial["mode"] for trial in trials[4:6]] == [0, 0] and trials[4]["step"] == -trials[5]["step"]
    two = cut(None, "--target", "params=10%", "--allocate", "search", "--trials", "2", "--round-to", "1", verb="plan")["plan"]
    best = "softmax" if two["provenance"]["search"][1]["better"] else "loss"
    taken = cut(None, "--target", "params=10%", "--allocate", best, "--round-to", "1", verb="plan")
    assert two["dims"] == taken["plan"]["dims"] and len(two["provenance"]["search"]) == 2


@pytest.mark.parametrize("basis", ["layer", "global"])
def test_a_plan_file_gives_the_same_model(cut, basis, tmp_path):
    plan = tmp_path / "plan.json"
    options = ["--avg", "25%", "--allocate", "constant", "--basis", basis]
    cut(plan, *options, verb="plan")
    cut(tmp_path / "by-plan", "--plan", plan)
    cut(tmp_path / "out", *options)
    assert (tmp_path / "by-plan" / "model.safetensors").read_bytes() == (tmp_path / "out" / "model.safetensors").read_bytes()


def test_refits_and_directions_change_the_weights_and_not_the_shapes(cut, tmp_path):
    written = set()
    for i, options in enumerate([["--refit", "none"], ["--refit", "dense"], [], ["--directions", "loss"], ["--directions", "places"]]):
        cut(tmp_path / str(i), "--avg", "25%", "--basis", "global", *options)
        assert config_of(tmp_path / str(i)) == config_of(tmp_path / "0")
        written.add((tmp_path / str(i) / "model.safetensors").read_bytes())
    assert len(written) == 5


@pytest.mark.parametrize("basis", ["block", "layer"])
def test_refits_keep_the_shapes_of_several_bases_too(cut, basis, tmp_path):
    written = set()
    for i, options in enumerate([[], ["--refit", "dense"], ["--refit", "all"], ["--refit", "all", "--error-share", "1"]]):
        done = cut(tmp_path / str(i), "--avg", "25%", "--allocate", "search", "--trials", "2", "--basis", basis, *options)
        assert done["plan"]["basis"] == basis
        written.add((tmp_path / str(i) / "model.safetensors").read_bytes())
    assert len(written) == 4


@pytest.mark.parametrize("options, words", [
    (["--basis", "global", "--allocate", "lr"], "--allocate constant"),
    (["--basis", "global", "--preset", "paper"], "--basis block"),
    (["--basis", "global", "--refit", "self"], "--refit self belongs to --method modular"),
    (["--basis", "global", "--neurons", "loss"], "--method modular"),
    (["--basis", "global", "--directions", "loss", "--gradient-samples", "0"], "--gradient-samples"),
    (["--refit", "self"], "--refit self belongs to --method modular"),
    (["--ridge", "0.1"], "--refit dense or all"),
    (["--refit", "none", "--error-share", "1"], "--refit dense or all"),
    (["--preset", "paper", "--refit", "all"], "--preset paper refits nothing"),
    (["--basis", "layer", "--directions", "loss"], "--basis global"),
    (["--method", "modular", "--basis", "global"], "--method slice"),
    (["--method", "modular", "--refit", "none"], "--method slice"),
])  # fmt: skip
def test_what_does_not_go_together_is_refused(cut, tmp_path, options, words):
    stderr = cut(tmp_path / "out", "--avg", "25%", *options, expect=2).stderr
    assert words in stderr.splitlines()[-1] and not (tmp_path / "out").exists()


def test_options_without_a_use_for_the_plan_file_are_refused(cut, tmp_path):
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"dims": [48] * 4}))
    for options, words in ((["--directions", "loss"], "--basis global"), (["--ridge", "1"], "--refit dense or all")):
        stderr = cut(tmp_path / "out", "--plan", plan, *options, expect=2).stderr
        assert words in stderr.splitlines()[-1]


def test_a_plan_of_several_widths_in_one_basis_is_refused(cut, tmp_path):
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"basis": "global", "dims": [48, 48, 40, 48]}))
    stderr = cut(tmp_path / "out", "--plan", plan, expect=3).stderr
    assert "layer 2 has 40" in stderr.splitlines()[-1]
