"""Runs that are killed or stopped, and go on: they end with the bytes of a run that nobody disturbed."""

import json
import pathlib
import random
import shutil
import signal
import subprocess
import time

import pytest

# A journal at every layer boundary: the runs here are too short for the usual pace.
EVERY = {"DYNSLICE_JOURNAL": "every"}
WORK = ["--samples", "24", "--seqlen", "128"]


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model("llama", num_hidden_layers=20, max_shard_size="1GB")


@pytest.fixture
def cache(tmp_path):
    return {**EVERY, "DYNSLICE_CACHE": str(tmp_path / "cache")}


@pytest.fixture
def start(binary):
    """start(arguments, env) -> the running program."""
    import os

    def begin(arguments, env):
        return subprocess.Popen([binary, *map(str, arguments)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_WAIT_POLICY": "passive", **env})

    return begin


def content(path):
    """Every file below a folder (or the file itself) with its bytes."""
    if path.is_file():
        return path.read_bytes()
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


def kill_and_resume(start, arguments, env, moments):
    """Starts the command with --resume again and again and kills it after these times; returns the last, whole run."""
    killed, resumed = 0, 0
    for moment in moments:
        running = start([*arguments, "--resume"], env)
        try:
            _, stderr = running.communicate(timeout=moment)
            assert running.returncode == 0, stderr
            return killed, resumed, running
        except subprocess.TimeoutExpired:
            running.send_signal(signal.SIGKILL)
            _, stderr = running.communicate()
            resumed += "Resuming at" in stderr
            killed += running.returncode == -signal.SIGKILL
    running = start([*arguments, "--resume"], env)
    running.stdout_text, stderr = running.communicate(timeout=300)
    assert running.returncode == 0, stderr
    resumed += "Resuming at" in stderr
    return killed, resumed, running


def wait_for(path, running):
    deadline = time.monotonic() + 60
    while not path.exists():
        assert running.poll() is None and time.monotonic() < deadline, running.stderr.read()
        time.sleep(0.002)


def stop_midway(start, arguments, env, journal, number=signal.SIGKILL, until="journal.json"):
    """Starts the command and sends the signal as soon as something is in its journal. -> exit code, stderr"""
    running = start(arguments, env)
    wait_for(journal / until, running)
    running.send_signal(number)
    _, stderr = running.communicate(timeout=60)
    return running.returncode, stderr


def message(stderr):
    last = stderr.splitlines()[-1]
    assert last.startswith("dynslice: "), stderr
    return last


# --- kills at random moments ------------------------------------------------------------------------------------


def test_slice_killed_twenty_times_at_random_moments_writes_the_same_bytes(run, start, model, text_file, tmp_path):
    arguments = ["slice", model, "--avg", "25%", "--calib", text_file, *WORK, "-o", tmp_path / "out"]
    began = time.monotonic()
    run(*arguments, env=EVERY)
    seconds = time.monotonic() - began
    expected = content(tmp_path / "out")
    assert set(expected) >= {"model.safetensors", "config.json", "dynslice.json"}
    assert not any(name.startswith("journal") for name in expected)
    shutil.rmtree(tmp_path / "out")

    chosen = random.Random(20)
    kills = resumes = rounds = 0
    while kills < 20 or resumes < 5:
        # Start-up is a good part of such a short run: kills in it meet a journal that nothing was added to.
        moments = [chosen.uniform(0.3, 1.0) * seconds for _ in range(max(1, min(5, 20 - kills)))]
        killed, resumed, _ = kill_and_resume(start, arguments, EVERY, moments)
        kills, resumes, rounds = kills + killed, resumes + resumed, rounds + 1
        # How long a run takes depends on what else the machine does: too late for most, or too early for a journal.
        seconds *= 0.8 if killed < len(moments) else 1.1 if resumed == 0 else 1
        assert content(tmp_path / "out") == expected, f"after {kills} kills"
        assert not (tmp_path / "out.partial").exists()
        shutil.rmtree(tmp_path / "out")
        assert rounds < 60, f"{kills} kills and {resumes} resumed runs only"


def test_slice_with_base_auto_and_shards_goes_on_from_its_trials(run, start, model, text_file, tmp_path):
    arguments = ["slice", model, "--avg", "7%", "--base", "auto", "--calib", text_file, "--samples", "12", "--seqlen", "64", "-o", tmp_path / "out"]
    began = time.monotonic()
    run(*arguments, env=EVERY)
    seconds = time.monotonic() - began
    expected = content(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    chosen = random.Random(4)
    kill_and_resume(start, arguments, EVERY, [chosen.uniform(0.2, 0.9) * seconds for _ in range(4)])
    assert content(tmp_path / "out") == expected


@pytest.mark.parametrize("options", [["--basis", "layer"], ["--refit", "all"], ["--basis", "global"], ["--basis", "global", "--directions", "loss", "--refit", "dense"]],
                         ids=" ".join)  # fmt: skip
def test_slice_in_fewer_bases_goes_on_with_the_walk_it_was_in(run, start, model, text_file, tmp_path, options):
    arguments = ["slice", model, "--avg", "25%", *options, "--calib", text_file, *WORK, "-o", tmp_path / "out"]
    began = time.monotonic()
    run(*arguments, env=EVERY)
    seconds = time.monotonic() - began
    expected = content(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    chosen = random.Random(6)
    kill_and_resume(start, arguments, EVERY, [chosen.uniform(0.3, 0.95) * seconds for _ in range(5)])
    assert content(tmp_path / "out") == expected


@pytest.mark.parametrize("metric", ["lr", "window:3"])
def test_score_killed_writes_the_same_file(run, start, model, text_file, tmp_path, metric):
    file = tmp_path / "scores.json"
    arguments = ["score", model, "--metric", metric, "--calib", text_file, *WORK, "-o", file]
    run(*arguments, env=EVERY)
    expected = content(file)
    file.unlink()
    code, _ = stop_midway(start, arguments, EVERY, tmp_path / "scores.json.partial")
    assert code == -signal.SIGKILL and not file.exists()
    again = run(*arguments, "--resume", env=EVERY)
    assert "Resuming at" in again.stderr and content(file) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["scores.json"]


def test_plan_base_auto_killed_writes_the_same_file(run, start, model, text_file, tmp_path):
    file = tmp_path / "plan.json"
    arguments = ["plan", model, "--avg", "5%", "--base", "auto", "--calib", text_file, "--samples", "12", "--seqlen", "64", "-o", file]
    began = time.monotonic()
    run(*arguments, env=EVERY)
    seconds = time.monotonic() - began
    expected = content(file)
    file.unlink()
    chosen = random.Random(5)
    kill_and_resume(start, arguments, EVERY, [chosen.uniform(0.3, 0.9) * seconds for _ in range(3)])
    assert content(file) == expected and [path.name for path in tmp_path.iterdir()] == ["plan.json"]


@pytest.mark.parametrize("against", [False, True])
def test_eval_killed_gives_the_same_figures_and_leaves_nothing(run, start, model, tiny_model, text_file, tmp_path, cache, against):
    more = ["--against", tiny_model("llama", seed=1)] if against else []
    arguments = ["eval", model, "--ppl", text_file, *WORK, *more, "--json"]
    expected = json.loads(run(*arguments, env=cache).stdout)
    journals = tmp_path / "cache" / "journals"
    assert not list(journals.iterdir())
    running = start(arguments, cache)
    deadline = time.monotonic() + 60
    while not list(journals.glob("eval-*/journal.json")) and time.monotonic() < deadline:
        time.sleep(0.002)
    running.kill()
    running.communicate()
    assert list(journals.glob("eval-*/journal.json"))
    again = run(*arguments, "--resume", env=cache)
    found = json.loads(again.stdout)
    assert "Resuming at" in again.stderr
    assert found["perplexity"] == expected["perplexity"] and found["provenance"] == expected["provenance"]
    assert found.get("divergence") == expected.get("divergence")
    assert not list(journals.iterdir())


# --- what resuming asks for -------------------------------------------------------------------------------------


@pytest.fixture
def stopped(start, model, text_file, tmp_path):
    """A slice that was killed, and its arguments."""
    arguments = ["slice", model, "--avg", "25%", "--calib", text_file, *WORK, "-o", tmp_path / "out"]
    code, _ = stop_midway(start, arguments, EVERY, tmp_path / "out.partial")
    assert code == -signal.SIGKILL
    return arguments


def test_a_stopped_run_is_not_dropped_silently(run, stopped, tmp_path):
    refused = run(*stopped, env=EVERY, expect=2)
    assert "--resume" in message(refused.stderr) and "--force" in message(refused.stderr)
    assert "of 20" in message(refused.stderr)
    assert "Resuming at" in run(*stopped, "--resume", env=EVERY).stderr

    assert not (tmp_path / "out.partial").exists()


def test_force_starts_over(run, stopped, tmp_path):
    again = run(*stopped, "--force", env=EVERY)
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
    refused = run(*other, "--resume", env=EVERY, expect=2)
    for word in [*words, "another job"]:
        assert word in message(refused.stderr), refused.stderr
    assert (tmp_path / "out.partial" / "journal.json").exists()


def test_another_text_and_another_model_are_refused(run, stopped, text_file, model, tmp_path):
    longer = tmp_path / "text.txt"
    longer.write_text("The river. " + text_file.read_text())
    other = [longer if argument == text_file else argument for argument in stopped]
    assert "--calib" in message(run(*other, "--resume", env=EVERY, expect=2).stderr)
    copied = shutil.copytree(model, tmp_path / "model")
    other = [copied if argument == model else argument for argument in stopped]
    assert "model" in message(run(*other, "--resume", env=EVERY, expect=2).stderr)


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


def test_a_damaged_journal_is_one_clear_line(run, start, model, text_file, tmp_path):
    stopped = ["slice", model, "--avg", "25%", "--calib", text_file, *WORK, "-o", tmp_path / "out"]
    partial = tmp_path / "out.partial"
    running = start(stopped, EVERY)
    wait_for(partial / "model.safetensors", running)  # slicing has begun: what is damaged may be a weight, too
    first = (partial / "journal.json").read_bytes()
    deadline = time.monotonic() + 60
    while (partial / "journal.json").read_bytes() == first and time.monotonic() < deadline:
        time.sleep(0.002)
    running.send_signal(signal.SIGKILL)
    running.communicate(timeout=60)
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
        refused = run(*stopped, "--resume", env=EVERY, expect=3)
        assert "damaged" in message(refused.stderr) and "without --resume" in message(refused.stderr), (name, position)
    again = run(*stopped, env=EVERY, expect=None)  # what cannot be resumed may be dropped
    assert again.code == 2 or "Starting over" in again.stderr


# --- Ctrl-C -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "kill"])
def test_a_stopped_slice_says_how_to_go_on(run, start, model, text_file, tmp_path, number):
    arguments = ["slice", model, "--avg", "25%", "--calib", text_file, *WORK, "-o", tmp_path / "out"]
    run(*arguments, env=EVERY)
    expected = content(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    code, stderr = stop_midway(start, arguments, EVERY, tmp_path / "out.partial", number)
    assert code == 130
    said = message(stderr)
    assert said.startswith("dynslice: interrupted") and "of 20" in said and said.endswith("--resume")
    command = said[said.index(": ", said.index("go on")) + 2:]
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=120)  # as it was told
    assert done.returncode == 0 and "Resuming at" in done.stderr, done.stderr
    assert content(tmp_path / "out") == expected


def test_a_second_ctrl_c_ends_at_once_and_can_be_resumed(run, start, model, text_file, tmp_path):
    arguments = ["slice", model, "--avg", "25%", "--calib", text_file, *WORK, "-o", tmp_path / "out"]
    running = start(arguments, EVERY)
    wait_for(tmp_path / "out.partial" / "journal.json", running)
    running.send_signal(signal.SIGINT)
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=60)
    assert running.returncode in (130, -signal.SIGINT)
    assert "Resuming at" in run(*arguments, "--resume", env=EVERY).stderr


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
