"""`dynslice slice --method modular`: sizes, plans, what its checkpoints are, and resuming."""

import json

import pytest

WORK = ["--samples", "8", "--seqlen", "64"]


@pytest.fixture(scope="module")
def llama(tiny_model):
    return tiny_model("llama", num_hidden_layers=6)


@pytest.fixture
def modular(run, llama, text_file):
    """modular(OUT or None, *options): the JSON of `slice --method modular`, or the Result when it must fail."""

    def make(out, *options, verb="slice", expect=0, model=llama):
        where = ["-o", out] if out else []
        done = run(verb, model, "--method", "modular", "--calib", text_file, *WORK, *options, *where, "--json", expect=expect)
        return done.json() if expect == 0 else done

    return make


def sizes(folder):
    config = json.loads((folder / "config.json").read_text())
    if "dynslice" not in config:
        return [config["intermediate_size"]] * config["num_hidden_layers"]
    return [layer["intermediate_size"] for layer in config["dynslice"]["layers"]]


def test_equal_sizes_give_an_ordinary_checkpoint(modular, run, text_file, tmp_path):
    done = modular(tmp_path / "out", "--avg", "25%", "--allocate", "constant")
    assert done["method"] == "modular" and done["plan"]["dims"] == [120] * 6 and done["plan"]["intermediate_size"] == 160
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_type"] == "llama" and config["intermediate_size"] == 120 and "auto_map" not in config
    assert not list((tmp_path / "out").glob("*.py"))
    shown = run("inspect", tmp_path / "out", "--json").json()
    assert shown["parameters"] == done["parameters"]["after"] == done["parameters"]["before"] - 6 * 3 * 40 * 64


def test_gradients_pass_through_windows_that_slide(modular, tiny_model, tmp_path):
    """The mask of a sliding window is made before gradients are asked for."""
    sliding = tiny_model("mistral", sliding_window=32)
    done = modular(tmp_path / "out", "--avg", "25%", model=sliding)
    assert done["plan"]["allocator"] == "blend" and sizes(tmp_path / "out") == done["plan"]["dims"]


def test_the_loss_decides_which_layer_loses_how_much(modular, tmp_path):
    done = modular(tmp_path / "out", "--avg", "25%", "--allocate", "loss", "--attention", "keep")
    assert done["plan"]["allocator"] == "loss" and len(set(done["plan"]["dims"])) > 1 and "heads" not in done["plan"]
    assert sum(done["plan"]["dims"]) == pytest.approx(6 * 120, abs=8) and sizes(tmp_path / "out") == done["plan"]["dims"]
    assert all(loss >= 0 for loss in done["plan"]["provenance"]["losses"])


def test_equal_heads_and_neurons_are_chosen_by_the_loss_and_their_price_is_told(modular, run, llama, text_file, tmp_path):
    for average in ["10%", "35%", "76%"]:
        done = modular(None, "--avg", average, "--uniform", "--round-to", "1", verb="plan")["plan"]
        assert done["allocator"] == "uniform" and len(set(done["dims"])) == len(set(done["heads"])) == len(set(done["kv_heads"])) == 1
        free = modular(None, "--avg", average, "--allocate", "loss", "--round-to", "1", verb="plan")["plan"]
        losses = {key: sum(done["provenance"][key]) for key in ("losses", "losses_of_free_shapes")}
        assert losses["losses"] > losses["losses_of_free_shapes"] == pytest.approx(sum(free["provenance"]["losses"]), rel=1e-6)
        # Of what may go: the first layer keeps some attention.
        gone = 6 * (3 * 64 * (160 - done["dims"][0]) + 2 * 64 * 16 * (4 - done["heads"][0] + 2 - done["kv_heads"][0]))
        most = 6 * (3 * 64 * 160 + 2 * 64 * 16 * 6)
        assert gone == pytest.approx(float(average[:-1]) / 100 * most, rel=0.03)
        if average == "76%":
            assert done["heads"][0] < 4  # neurons alone would not do
    text = ["--calib", text_file, *WORK]
    shown = run("slice", llama, "--method", "modular", "--target", "params=52%", "--uniform", *text, "-o", tmp_path / "out")
    assert "equal shapes are expected to cost" in shown.stderr and "--allocate loss" in shown.stderr
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_type"] == "llama" and config["num_attention_heads"] < 4 and not list((tmp_path / "out").glob("*.py"))
    refused = run("slice", llama, "--avg", "30%", "--uniform", *text, "-o", tmp_path / "no", expect=2)
    assert "--method modular" in refused.stderr


@pytest.mark.parametrize("heads", ["keep", "heads"])
def test_by_default_layers_lose_what_lies_between_loss_and_influence(modular, heads):
    def plan(*options):
        return modular(None, *options, "--round-to", "1", verb="plan")["plan"]

    loss = plan("--avg", "50%", "--allocate", "loss", "--attention", heads)
    neurons = 1 - sum(loss["dims"]) / (6 * 160)  # the average is of neurons and heads
    influence = plan("--avg", str(neurons), "--allocate", "softmax")
    done = plan("--avg", "50%", "--attention", heads)
    assert done["allocator"] == "blend" and done.get("heads") == loss.get("heads") and ("heads" in done) == (heads == "heads")
    assert done["dims"] == pytest.approx([(one + other) / 2 for one, other in zip(loss["dims"], influence["dims"], strict=True)], abs=2)
    assert loss["dims"] != influence["dims"] and sum(done["dims"]) == pytest.approx(sum(loss["dims"]), abs=1)


def test_attention_heads_go_where_that_costs_less_than_neurons(modular, run, text_file, tmp_path):
    done = modular(tmp_path / "out", "--avg", "50%", "--attention", "heads")
    heads, groups = done["plan"]["heads"], done["plan"]["kv_heads"]
    shown = run("inspect", tmp_path / "out", "--json").json()
    assert [(shape["heads"], shape["key_value_heads"]) for shape in shown["shapes"]] == list(zip(heads, groups, strict=True))
    assert min(heads) < max(heads) and all(group == 0 or head % group == 0 for head, group in zip(heads, groups, strict=True))
    layers = done["parameters"]["before"] - 2 * 512 * 64  # some hundred of them are norms
    assert done["parameters"]["before"] - done["parameters"]["after"] == pytest.approx(0.5 * layers, rel=0.03)
    loss = run("eval", tmp_path / "out", "--ppl", text_file, "--samples", "4", "--seqlen", "64", "--json").json()
    assert loss["perplexity"][text_file.name]["value"] > 1


def test_the_best_preset_is_this_method(modular, run, llama, text_file):
    plain = modular(None, "--avg", "25%", verb="plan")["plan"]
    best = run("plan", llama, "--preset", "best", "--avg", "25%", "--calib", text_file, *WORK, "--json").json()["plan"]
    assert best["method"] == "modular" and best["dims"] == plain["dims"]
    # Without a number of windows it takes 128, or as many as the text has.
    all_there_are = run("plan", llama, "--preset", "best", "--avg", "25%", "--calib", text_file, "--seqlen", "64", "--json").json()["plan"]
    assert 8 < all_there_are["provenance"]["calibration"]["windows"] <= 128
    done = run("plan", llama, "--preset", "best", "--method", "slice", "--avg", "25%", "--calib", text_file, *WORK, expect=2)
    assert "--preset best is of --method modular" in done.stderr


def test_search_tries_what_it_says_and_takes_the_best(modular, tmp_path):
    done = modular(tmp_path / "plan.json", "--avg", "50%", "--allocate", "search", "--trials", "6", "--sweep-samples", "4", verb="plan")
    trials = done["plan"]["provenance"]["search"]
    start = modular(None, "--avg", "50%", "--allocate", "loss", verb="plan")
    starts = ["loss", "softmax", "lr", "blend"]
    assert len(trials) == 6 and trials[0]["better"] and [trial.get("start") for trial in trials] == [*starts, None, None]
    # Its average is of neurons and heads, that of softmax of neurons alone: they are compared at equal size all the same.
    assert done["parameters"]["after"] == pytest.approx(start["parameters"]["after"], rel=0.005)
    assert any(trial["better"] for trial in trials[1:]) == (done["plan"]["dims"] != start["plan"]["dims"])
    assert all(trial["held_out_loss"] > 0 for trial in trials)
    assert done["plan"]["average_ratio"] == 0.5 and len(done["plan"]["heads"]) == 6


@pytest.mark.parametrize("allocate", ["loss", "blend", "search", "softmax", "lr", "constant"])
def test_a_target_is_met(modular, allocate):
    done = modular(None, "--target", "params=20%", "--allocate", allocate, "--round-to", "1", verb="plan")
    assert 1 - done["parameters"]["after"] / done["parameters"]["before"] == pytest.approx(0.2, abs=0.002)


def test_a_target_beyond_the_neurons_takes_heads(modular, tmp_path):
    done = modular(tmp_path / "out", "--target", "params=50%")  # all MLPs at 80 % would be 45 %
    assert 1 - done["parameters"]["after"] / done["parameters"]["before"] == pytest.approx(0.5, abs=0.02)
    refused = modular(tmp_path / "not", "--target", "params=50%", "--attention", "keep", expect=2)
    assert "cannot remove 50% of the parameters" in refused.stderr


@pytest.mark.parametrize("allocate", ["loss", "blend"])
def test_layers_may_lose_as_much_as_a_plan_may_say(modular, allocate):
    done = modular(None, "--target", "params=40%", "--max-ratio", "95%", "--allocate", allocate, "--attention", "keep", verb="plan")
    assert max(done["plan"]["ratios"]) <= 0.95


def test_a_plan_of_equal_sizes_needs_no_text(run, llama, tmp_path):
    done = run("plan", llama, "--method", "modular", "--allocate", "constant", "--avg", "25%", "--calib", tmp_path / "missing.txt", "--json").json()
    assert done["plan"]["dims"] == [120] * 6 and "calibration" not in done["plan"]["provenance"]


def test_a_plan_file_gives_the_model_of_its_sizes(modular, run, llama, text_file, tmp_path):
    plan = tmp_path / "plan.json"
    made = modular(plan, "--avg", "30%", "--attention", "heads", verb="plan")
    shown = run("slice", llama, "--plan", plan, "--calib", text_file, *WORK, "-o", tmp_path / "by-plan", "--json").json()
    whole = modular(tmp_path / "at-once", "--avg", "30%", "--attention", "heads")
    assert shown["plan"]["dims"] == made["plan"]["dims"] == whole["plan"]["dims"]
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "by-plan" / name).read_bytes() == (tmp_path / "at-once" / name).read_bytes()
    refused = run("slice", llama, "--plan", plan, "--attention", "keep", "--calib", text_file, *WORK, expect=2)
    assert "--plan" in refused.stderr and "--attention" in refused.stderr


@pytest.mark.parametrize("allocate", ["spectrum", "loss", "blend", "search"])
def test_slicing_shares_out_by_spectra_too(run, llama, text_file, tmp_path, allocate):
    few = ["--trials", "3", "--sweep-samples", "4"] if allocate == "search" else []
    done = run("slice", llama, "--avg", "25%", "--allocate", allocate, *few, "--round-to", "1", "--calib", text_file, *WORK,
               "-o", tmp_path / "out", "--json").json()  # fmt: skip
    assert sum(done["plan"]["dims"]) == pytest.approx(6 * 48, abs=2) and len(set(done["plan"]["dims"])) > 1
    assert ("scores" not in done) if allocate == "loss" else (done["scores"]["metric"] == "lr")


@pytest.mark.parametrize("options", [["--neurons", "leverage"], ["--refit", "self"], ["--refit", "all"], ["--weigh-tokens", "alike"], ["--gradient-samples", "0"], ["--error-share", "1"],
                                     ["--allocate", "lr", "--base", "auto", "--sweep-samples", "4"]], ids=" ".join)  # fmt: skip
def test_every_way_gives_a_model(modular, run, text_file, tmp_path, options):
    modular(tmp_path / "out", "--avg", "25%", *options)
    loss = run("eval", tmp_path / "out", "--ppl", text_file, "--samples", "4", "--seqlen", "64", "--json").json()
    assert loss["perplexity"][text_file.name]["value"] > 1


@pytest.mark.parametrize("allocate", ["constant", "loss"])
def test_other_verbs_take_what_it_makes(modular, run, text_file, tmp_path, allocate):
    out = tmp_path / "out"
    modular(out, "--avg", "25%", "--allocate", allocate)
    few = ["--calib", text_file, *WORK]
    run("quantize", out, "--bits", "8", *few, "-o", tmp_path / "quantized")
    assert sizes(tmp_path / "quantized") == sizes(out)
    run("heal", out, "--lora", "--text", text_file, "--samples", "4", "--seqlen", "32", "--updates", "2", "-o", tmp_path / "healed")
    assert sizes(tmp_path / "healed") == sizes(out)
    run("depth", "drop", out, "--indices", "2", "-o", tmp_path / "shallow")
    assert sizes(tmp_path / "shallow") == sizes(out)[:2] + sizes(out)[3:]
    run("slice", out, "--avg", "25%", *few, "-o", tmp_path / "narrow")
    run("bench", out, "--prompt-tokens", "16", "--decode-tokens", "4", "--repeats", "1")
    record = json.loads((tmp_path / "healed" / "dynslice.json").read_text())
    assert [step["method"] for step in record["steps"]][0] == "modular"


@pytest.mark.parametrize(("options", "words"), [
    (["--avg", "25%", "--slice-head"], "--slice-head belongs to --method slice"),
    (["--avg", "25%", "--preset", "paper"], "--preset paper belongs to --method slice"),
    (["--avg", "25%", "--base", "10%"], "--base belongs to --allocate lr"),
    (["--avg", "25%", "--allocate", "spectrum"], "--allocate spectrum belongs to --method slice"),
    (["--avg", "25%", "--allocate", "lr", "--attention", "heads"], "--attention belongs to --allocate loss"),
    (["--avg", "25%", "--max-ratio", "0"], "--max-ratio 0: must be above 0"),
    (["--avg", "85%", "--allocate", "softmax"], "--avg 0.85: is above the largest ratio of a layer"),
    (["--avg", "25%", "--allocate", "loss", "--scores", "scores.json"], "--scores belongs to --allocate lr"),
    (["--target", "params=95%"], "cannot remove 95% of the parameters"),
    ([], "say how much"),
], ids=lambda value: " ".join(value) if isinstance(value, list) else "")  # fmt: skip
def test_wrong_usage_is_one_line_and_leaves_nothing(modular, tmp_path, options, words):
    done = modular(tmp_path / "out", *options, expect=2)
    assert words in done.stderr and done.stderr.count("\n") == 1 and list(tmp_path.iterdir()) == []


def test_options_of_modular_are_refused_elsewhere(run, llama, text_file, tmp_path):
    for options in (["--refit", "self"], ["--attention", "keep"], ["--gradient-samples", "2"]):
        done = run("slice", llama, "--avg", "25%", *options, "--calib", text_file, *WORK, "-o", tmp_path / "out", expect=2)
        assert "belong" in done.stderr and "--method modular" in done.stderr


def test_models_it_cannot_take_are_refused(modular, run, llama, text_file, tmp_path):
    modular(tmp_path / "out", "--avg", "25%")
    assert "different sizes already" in modular(tmp_path / "again", "--avg", "25%", model=tmp_path / "out", expect=2).stderr
    run("slice", llama, "--avg", "25%", "--calib", text_file, *WORK, "-o", tmp_path / "sliced")
    assert "is sliced" in modular(tmp_path / "again", "--avg", "25%", model=tmp_path / "sliced", expect=2).stderr


def test_dry_run_foretells_and_writes_nothing(modular, tmp_path):
    shown = modular(tmp_path / "out", "--avg", "25%", "--dry-run")
    assert shown["memory"]["bytes"] > 0 and shown["disk"]["output_bytes"] > 0 and list(tmp_path.iterdir()) == []


def test_killed_runs_go_on_to_the_same_bytes(kill_and_resume, run, llama, text_file, tmp_path):
    command = ["slice", llama, "--method", "modular", "--attention", "heads", "--avg", "40%", "--calib", text_file, *WORK]
    run(*command, "-o", tmp_path / "whole")
    killed = kill_and_resume([*command, "-o", tmp_path / "resumed"])
    assert killed.kills >= 6 and any("(compressing)" in place for place in killed.places)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "resumed" / name).read_bytes()
