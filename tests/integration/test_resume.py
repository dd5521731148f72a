"""Runs that are killed or stopped, and go on: they end with the bytes of a run that nobody disturbed."""

import json
import random
import shutil
import signal
import subprocess

import pytest

LAYERS = 3
# Two chunks of the residual stream, of 2048 tokens at most.
WORK = ["--samples", "18", "--seqlen", "128"]
SHORT = ["--samples", "12", "--seqlen", "64"]


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model("llama", num_hidden_layers=LAYERS)


@pytest.fixture
def stop(run):
    """stop(arguments, "slicing:2") -> Result of a run that was killed behind the second save of slicing."""

    def until(arguments, after, expect=-signal.SIGKILL):
        return run(*arguments, env={"DYNSLICE_JOURNAL": "every", "DYNSLICE_STOP_AFTER": after}, expect=expect)

    return until


def content(path):
    """Every file below a folder (or the file itself) with its bytes."""
    if path.is_file():
        return path.read_bytes()
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


def message(stderr):
    last = stderr.splitlines()[-1]
    assert last.startswith("dynslice: "), stderr
    return last


def walk(phase, layers=LAYERS):
    """Where runs resume that were killed at every layer boundary of a walk."""
    return [f"layer {k} of {layers} ({phase})" for k in range(2, layers + 1)] + [f"the end of layer {layers} ({phase})"]


# --- kills at every save ----------------------------------------------------------------------------------------


def test_slice_killed_at_every_save_writes_the_same_bytes(run, kill_and_resume, tiny_model, text_file, tmp_path):
    out = tmp_path / "out"
    arguments = ["slice", tiny_model("llama", num_hidden_layers=12), "--avg", "25%", "--calib", text_file, *WORK, "-o", out]
    run(*arguments)
    expected = content(out)
    assert set(expected) >= {"model.safetensors", "config.json", "dynslice.json"}
    assert not any(name.startswith("journal") for name in expected)
    shutil.rmtree(out)

    def there_is_no_half_checkpoint():
        assert not out.exists() and (tmp_path / "out.partial").exists()

    killed = kill_and_resume(arguments, after_kill=there_is_no_half_checkpoint)
    assert killed.places == [*walk("scoring", 12), "the step after scoring", *walk("slicing", 12)]  # 25 kills
    assert content(out) == expected and not (tmp_path / "out.partial").exists()


SCORING = [*walk("scoring"), "the step after scoring"]


@pytest.mark.parametrize(
    "options, expected",
    [
        (["--basis", "layer"], [*SCORING, *walk("slicing")]),
        (["--refit", "all"], [*SCORING, *walk("slicing")]),
        (["--basis", "global"], walk("slicing", 2 * LAYERS)),  # to the basis, and from it on
    ],
    ids=["layer", "refit", "global"],
)
def test_slice_in_fewer_bases_goes_on_with_the_walk_it_was_in(run, kill_and_resume, model, text_file, tmp_path, options, expected):
    arguments = ["slice", model, "--avg", "25%", *options, "--calib", text_file, *SHORT, "-o", tmp_path / "out"]
    run(*arguments)
    whole = content(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    assert kill_and_resume(arguments, stops=("1",)).places == expected
    assert content(tmp_path / "out") == whole


def test_slice_by_the_loss_goes_on_with_its_gradients_and_its_walk(run, kill_and_resume, model, text_file, tmp_path):
    options = ["--avg", "25%", "--basis", "global", "--directions", "loss", "--refit", "dense"]
    arguments = ["slice", model, *options, "--calib", text_file, *SHORT, "-o", tmp_path / "out"]
    run(*arguments)
    whole = content(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    killed = kill_and_resume(arguments, stops=("1",))
    assert killed.places[-2 * LAYERS:] == walk("slicing", 2 * LAYERS) and any("gradients" in place for place in killed.places)
    assert content(tmp_path / "out") == whole


def test_slice_with_base_auto_goes_on_from_its_trials(run, kill_and_resume, model, text_file, tmp_path):
    arguments = ["slice", model, "--avg", "7%", "--base", "auto", "--calib", text_file, *SHORT, "-o", tmp_path / "out"]
    run(*arguments)
    whole = content(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    killed = kill_and_resume(arguments, stops=("3", "4:data", "4:state"))
    assert killed.kills >= 4 and any("base trial" in place for place in killed.places)
    assert content(tmp_path / "out") == whole


@pytest.mark.parametrize("metric", ["lr", "window:3"])
def test_score_killed_writes_the_same_file(run, kill_and_resume, model, text_file, tmp_path, metric):
    file = tmp_path / "scores.json"
    arguments = ["score", model, "--metric", metric, "--calib", text_file, *WORK, "-o", file]
    run(*arguments)
    expected = content(file)
    file.unlink()
    killed = kill_and_resume(arguments, after_kill=lambda: file.exists() and pytest.fail("half a file"))
    assert killed.places == [*walk("scoring"), "the step after scoring"]
    assert content(file) == expected and [path.name for path in tmp_path.iterdir()] == ["scores.json"]


def test_plan_base_auto_killed_writes_the_same_file(run, kill_and_resume, model, text_file, tmp_path):
    file = tmp_path / "plan.json"
    arguments = ["plan", model, "--avg", "5%", "--base", "auto", "--calib", text_file, *SHORT, "-o", file]
    run(*arguments)
    expected = content(file)
    file.unlink()
    killed = kill_and_resume(arguments, stops=("3", "4:data", "4:state"))
    assert killed.kills >= 4 and any("base trial" in place for place in killed.places)
    assert content(file) == expected and [path.name for path in tmp_path.iterdir()] == ["plan.json"]


@pytest.mark.parametrize("against", [False, True])
def test_eval_killed_gives_the_same_figures_and_leaves_nothing(run, kill_and_resume, model, tiny_model, text_file, tmp_path, against):
    more = ["--against", tiny_model("llama", seed=1, num_hidden_layers=LAYERS)] if against else []
    arguments = ["eval", model, "--ppl", text_file, *WORK, *more, "--json"]
    cache = {"DYNSLICE_CACHE": tmp_path / "cache"}
    journals = tmp_path / "cache" / "journals"
    expected = run(*arguments, env=cache).json()
    assert not journals.exists() or not list(journals.iterdir())
    killed = kill_and_resume(arguments, stops=("1",), env=cache, after_kill=lambda: list(journals.glob("eval-*/journal.json")) or pytest.fail("no journal"))
    assert killed.places == walk("evaluation", 2 * LAYERS if against else LAYERS)
    found = killed.done.json()
    assert found["perplexity"] == expected["perplexity"] and found["provenance"] == expected["provenance"]
    assert found.get("divergence") == expected.get("divergence")
    assert not list(journals.iterdir())


@pytest.mark.parametrize("value", ["0", "-1", "slicing", "slicing:", ":2", "1:late", "1:INT:data", "2:HUP", "1:", "1:saved:", "9999999999"])
def test_a_fault_point_that_cannot_be_is_wrong_usage(run, model, text_file, tmp_path, value):
    refused = run("slice", model, "--avg", "25%", "--calib", text_file, *SHORT, "-o", tmp_path / "out", env={"DYNSLICE_STOP_AFTER": value}, expect=2)
    assert f"DYNSLICE_STOP_AFTER={value}: " in message(refused.stderr) and "[PHASE:]N" in message(refused.stderr)
    assert not list(tmp_path.iterdir())


# --- what resuming asks for -------------------------------------------------------------------------------------


@pytest.fixture
def sliced(model, text_file, tmp_path):
    """The arguments of a slice."""
    return ["slice", model, "--avg", "25%", "--calib", text_file, *WORK, "-o", tmp_path / "out"]


@pytest.fixture
def stopped(stop, sliced):
    """The arguments of a slice that was killed behind the second of its layers, when weights had been written."""
    stop(sliced, "slicing:2")
    return sliced


def test_a_stopped_run_is_not_dropped_silently(run, stopped, tmp_path):
    refused = run(*stopped, expect=2)
    assert "--resume" in message(refused.stderr) and "--force" in message(refused.stderr)
    assert f"stopped at layer 3 of {LAYERS} (slicing);" in message(refused.stderr)
    assert f"Resuming at layer 3 of {LAYERS} (slicing)" in run(*stopped, "--resume").stderr
    assert not (tmp_path / "out.partial").exists()


def test_force_starts_over(run, stopped, tmp_path):
    again = run(*stopped, "--force")
    assert "Starting over" in again.stderr and "Resuming" not in again.stderr
    assert not (tmp_path / "out.partial").exists() and (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize(
    "old, new, words",
    [
        (["25%"], ["30%"], ["--avg", "25%", "30%"]),
        (["128"], ["64"], ["--seqlen", "128", "64"]),
        ([], ["--round-to", "4"], ["--round-to", "not given", "4"]),
        ([], ["--threads", "1"], ["threads"]),
    ],
)
def test_another_job_is_refused_by_the_option_that_differs(run, stopped, tmp_path, old, new, words):
    other = [new[0] if old and argument == old[0] else argument for argument in stopped] if old else [*stopped, *new]
    if new[0] == "--threads":
        other = [*stopped, "--threads", "3"]
    refused = run(*other, "--resume", expect=2)
    for word in [*words, "another job"]:
        assert word in message(refused.stderr), refused.stderr
    assert (tmp_path / "out.partial" / "journal.json").exists()


def test_what_is_said_where_may_differ(run, stopped, tmp_path):
    log_files = tmp_path / "1.log", tmp_path / "2.log"
    assert "Resuming" in run(*stopped, "--resume", "-v", "--log-file", log_files[0]).stderr
    assert "finished" in run(*stopped, "--resume", f"--log-file={log_files[1]}").stderr  # the record is of the same job
    assert "Resuming" in log_files[0].read_text() and "finished" in log_files[1].read_text()


def test_another_text_and_another_model_are_refused(run, stopped, text_file, model, tmp_path):
    longer = tmp_path / "text.txt"
    longer.write_text("The river. " + text_file.read_text())
    other = [longer if argument == text_file else argument for argument in stopped]
    assert "--calib" in message(run(*other, "--resume", expect=2).stderr)
    copied = shutil.copytree(model, tmp_path / "model")
    other = [copied if argument == model else argument for argument in stopped]
    assert "model" in message(run(*other, "--resume", expect=2).stderr)


def test_resume_without_anything_to_resume_starts_from_the_beginning(run, model, text_file, tmp_path):
    file = tmp_path / "scores.json"
    shown = run("score", model, "--calib", text_file, "--samples", "2", "--seqlen", "64", "-o", file, "--resume")
    assert "Nothing to resume" in shown.stderr and file.exists()


def test_resume_of_a_finished_slice_is_done_at_once(run, model, text_file, tmp_path):
    arguments = ["slice", model, "--avg", "25%", "--calib", text_file, "--samples", "2", "--seqlen", "64", "-o", tmp_path / "out"]
    run(*arguments)
    before = content(tmp_path / "out")
    assert "finished" in run(*arguments, "--resume").stderr
    assert content(tmp_path / "out") == before
    other = [*arguments[:3], "30%", *arguments[4:]]
    assert "exists" in message(run(*other, "--resume", expect=2).stderr)


# --- damage -----------------------------------------------------------------------------------------------------


def flip(path, position):
    """Changes one byte."""
    with open(path, "r+b") as file:
        file.seek(position)
        byte = file.read(1)
        file.seek(position)
        file.write(bytes([byte[0] ^ 1]))


def test_a_damaged_journal_is_one_clear_line(run, stopped, tmp_path):
    partial = tmp_path / "out.partial"
    kept = shutil.copytree(partial, tmp_path / "kept")
    [stream] = [path.name for path in partial.glob("journal-*.bin")]
    state_size, stream_size = (kept / "journal.json").stat().st_size, (kept / stream).stat().st_size
    chosen = random.Random(6)
    damages = [("journal.json", position) for position in [0, state_size // 2, chosen.randrange(state_size - 2)]]
    damages += [(stream, position) for position in [0, chosen.randrange(stream_size), stream_size - 1]]
    for name, position in [*damages, ("cut", 0), ("gone", 0), ("weights", 0)]:
        shutil.rmtree(partial)
        shutil.copytree(kept, partial)
        if name == "cut":
            (partial / stream).write_bytes((partial / stream).read_bytes()[:-1])
        elif name == "gone":
            (partial / stream).unlink()
        elif name == "weights":
            flip(partial / "model.safetensors", 8 + int.from_bytes((partial / "model.safetensors").read_bytes()[:8], "little"))
        else:
            flip(partial / name, position)
        refused = run(*stopped, "--resume", expect=3)
        assert "damaged" in message(refused.stderr) and "without --resume" in message(refused.stderr), (name, position)
    assert "--resume" in message(run(*stopped, expect=2).stderr)  # weights are looked at by a run that goes on
    flip(partial / "journal.json", state_size // 2)
    again = run(*stopped)  # what cannot be resumed may be dropped
    assert "Starting over" in again.stderr and "its journal is damaged" in again.stderr


# --- Ctrl-C -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["INT", "TERM"])
def test_a_stopped_slice_says_how_to_go_on(run, stop, sliced, tmp_path, name):
    run(*sliced)
    expected = content(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    stopped = stop(sliced, f"slicing:2:{name}", expect=130)
    assert stopped.stdout == "" and not (tmp_path / "out").exists()
    place = f"layer 3 of {LAYERS} (slicing)"
    said = message(stopped.stderr)
    assert said.startswith(f"dynslice: interrupted; to go on from {place}: ") and said.endswith(" --resume")
    told = said[said.index(f"{place}: ") + len(f"{place}: "):]
    done = subprocess.run(told, shell=True, capture_output=True, text=True, timeout=120)  # as it was told
    assert done.returncode == 0 and f"Resuming at {place}" in done.stderr, done.stderr
    assert content(tmp_path / "out") == expected


@pytest.mark.parametrize("moment, place", [("data", 2), ("state", 2), ("saved", 3)])
def test_a_second_ctrl_c_ends_at_once_and_can_be_resumed(run, stop, sliced, moment, place):
    stop(sliced, f"slicing:2:{moment}:INT:INT", expect=-signal.SIGINT)
    assert f"Resuming at layer {place} of {LAYERS} (slicing)" in run(*sliced, "--resume").stderr


# --- determinism ------------------------------------------------------------------------------------------------


def perplexity(run, folder, text_file, *options):
    shown = json.loads(run("eval", folder, "--ppl", text_file, "--seqlen", "64", "--samples", "16", "--json", *options).stdout)
    return shown["perplexity"][text_file.name]["value"]


def test_two_runs_write_the_same_bytes_in_every_file(run, model, text_file, tmp_path):
    arguments = ["slice", model, "--avg", "25%", "--calib", text_file, "--samples", "6", "--seqlen", "64", "-o", tmp_path / "out"]
    run(*arguments)
    first = content(tmp_path / "out")
    run(*arguments, "--force")
    second = content(tmp_path / "out")
    differing = {name for name in first | second if first.get(name) != second.get(name)}
    assert differing <= {"dynslice.json"}  # it holds the command line, --force included
    assert first["model.safetensors"] == second["model.safetensors"]


def test_one_and_two_threads_agree_to_rounding(run, model, text_file, tmp_path):
    values = []
    for threads in ("1", "2"):
        out = tmp_path / f"out{threads}"
        run("slice", model, "--avg", "25%", "--calib", text_file, "--samples", "8", "--seqlen", "128", "--threads", threads, "-o", out)
        values.append(perplexity(run, out, text_file, "--threads", "1"))
    assert values[0] == pytest.approx(values[1], rel=1e-4)
    dense = [perplexity(run, model, text_file, "--threads", threads) for threads in ("1", "2")]
    assert dense[0] == pytest.approx(dense[1], rel=1e-6)
