"""`dynslice depth` as a user meets it: what it prints and writes, how it fails, and how it goes on after a kill."""

import json

import pytest

CALIBRATION = ["--samples", "4", "--seqlen", "64"]


@pytest.fixture
def llama(tiny_model):
    return tiny_model("llama", num_hidden_layers=6)


@pytest.fixture
def depth(run, llama, text_file, tmp_path):
    """depth("drop", "--layers", 2): the result of the verb on a tiny model of 6 layers, written to tmp_path/out."""

    def call(verb, *options, text=True, **more):
        calibration = ["--calib", text_file, *CALIBRATION] if text else []
        return run("depth", verb, llama, *options, *calibration, "-o", tmp_path / "out", **more)

    return call


def test_drop_takes_the_layers_of_the_lowest_influence(depth, run, llama, text_file, tmp_path):
    done = depth("drop", "--layers", 2, "--json").json()
    scores = run("score", llama, "--metric", "bi", "--calib", text_file, *CALIBRATION, "--json").json()["values"]
    assert done["removed"] == sorted(sorted(range(6), key=lambda layer: scores[layer])[:2])
    assert done["layers"] == {"before": 6, "after": 4}
    assert done["parameters"]["after"] < done["parameters"]["before"]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_hidden_layers"] == 4 and config["model_type"] == "llama"


def test_drop_by_perplexity_reports_every_step(depth, run, text_file, tmp_path):
    trials = depth("drop", "--ratio", "33%", "--order", "ppl", "--json").json()["trials"]
    assert len(trials) == 2
    measured = run("eval", tmp_path / "out", "--ppl", text_file, *CALIBRATION, "--json").json()["perplexity"]
    assert trials[-1]["perplexity"] == pytest.approx(measured[text_file.name]["value"], rel=1e-4)


def test_merge_shows_its_trials_and_what_the_kept_streams_save(depth):
    shown = depth("merge", "--threshold", "0.5", "--merge-rule", "mean").stdout
    assert "layers as one" in shown and "times fewer than whole models" in shown and "perplexity" not in shown.split("Next:")[0]


def test_streamline_searches_the_window_of_the_lowest_loss(depth):
    done = depth("streamline", "--layers", 2, "--json").json()
    best = min(done["trials"], key=lambda trial: trial["perplexity"])
    assert done["removed"] == [best["start"], best["start"] + 1] and done["replace"] == "linear"
    assert [trial["start"] for trial in done["trials"]] == [1, 2, 3, 4]


def test_streamline_by_cosine_takes_the_most_alike(depth):
    done = depth("streamline", "--layers", 2, "--window", "cosine", "--json").json()
    values = done["scores"]["values"]
    assert done["removed"][0] == max(range(1, 5), key=lambda start: values[start])


@pytest.mark.parametrize(
    "verb, options, words",
    [
        ("drop", [], ["--layers N", "--ratio"]),
        ("drop", ["--layers", 6], ["--layers 6", "6 layers", "one must stay"]),
        ("drop", ["--indices", "2-9"], ["layer 9", "0 to 5"]),
        ("drop", ["--indices", "4-2"], ["4-2", "backwards"]),
        ("drop", ["--indices", "0-5"], ["one must stay"]),
        ("drop", ["--ratio", "120%"], ["--ratio", "below 100%"]),
        ("merge", ["--target-layers", 7], ["2 to 6 layers", "7"]),
        ("merge", ["--target-layers", 1], ["2 to 6 layers", "1 were asked"]),
        ("streamline", ["--layers", 2, "--window", "7"], ["--window 7", "1 to 4"]),
        ("streamline", ["--layers", 2, "--window", "best"], ["--window best", "search, cosine"]),
        ("streamline", ["--layers", 2, "--window", "0"], ["--window 0", "1 to 4"]),
    ],
)
def test_wrong_usage_is_one_line_and_leaves_nothing(depth, tmp_path, verb, options, words):
    failed = depth(verb, *options, expect=2)
    line = failed.stderr.strip().splitlines()[-1]
    assert line.startswith("dynslice: ") and failed.stdout == ""
    for word in words:
        assert word in line
    assert not list(tmp_path.glob("out*"))


def test_sliced_models_are_refused(run, llama, text_file, tmp_path):
    run("slice", llama, "--avg", "25%", "--calib", text_file, *CALIBRATION, "-o", tmp_path / "sliced")
    failed = run("depth", "drop", tmp_path / "sliced", "--indices", "1", "-o", tmp_path / "out", expect=2)
    assert "is sliced" in failed.stderr and not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [["drop", "--indices", "1"], ["drop", "--layers", 1], ["drop", "--layers", 2, "--order", "ppl"],
                                     ["merge", "--target-layers", 4], ["streamline", "--layers", 2]], ids=lambda o: " ".join(map(str, o)))  # fmt: skip
def test_dry_run_foretells_and_writes_nothing(depth, tmp_path, options):
    told = depth(*options, "--dry-run", "--json", text="--indices" not in options).json()
    assert told["memory"]["bytes"] > 0 and told["disk"]["output_bytes"] > 0
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("options", [["drop", "--layers", 2, "--order", "ppl"], ["merge", "--target-layers", 3], ["streamline", "--layers", 2]], ids=lambda o: o[0])
def test_killed_runs_go_on_to_the_same_bytes(kill_and_resume, run, llama, text_file, tmp_path, options):
    command = ["depth", options[0], llama, *options[1:], "--calib", text_file, *CALIBRATION]
    run(*command, "-o", tmp_path / "whole")
    # A run that resumes while windows are tried fits the repairs of all windows again.
    stops = ("repairs of all windows:3", "trying windows:3", "999") if options[0] == "streamline" else ("1", "2:data", "2:state")
    killed = kill_and_resume([*command, "-o", tmp_path / "killed"], stops=stops)
    assert killed.kills == 2 if options[0] == "streamline" else killed.kills >= 3
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    ours, theirs = (json.loads((tmp_path / name / "dynslice.json").read_text()) for name in ("killed", "whole"))
    for record in (ours, theirs):
        record["run"].pop("command_line")
    assert ours == theirs
