"""Memory: flat in the number of layers, kept within what was allowed, and foretold."""
import json
import os
import resource
import signal
import subprocess
import sys

import pytest

from conftest import REPOSITORY, make_text, path_from_environment

TOOL = REPOSITORY / "tools" / "make_sparse_model.py"


@pytest.fixture(scope="session")
def run(cold_run):
    """A forked process shares the pages of LibTorch with others, and holds fewer of its own than a user's."""
    return cold_run


@pytest.fixture(scope="module")
def sparse_model(tmp_path_factory):
    """sparse_model(layers=16, hidden=512, ...) -> folder, as tools/make_sparse_model.py writes it."""
    made = {}

    def make(random=None, **shape):
        key = json.dumps([random, shape], sort_keys=True)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("sparse") / "model"
            options = [f"--{name.replace('_', '-')}={value}" for name, value in shape.items()]
            options += [] if random is None else [f"--random={random}"]
            subprocess.run([sys.executable, TOOL, made[key], *options], check=True, capture_output=True)
        return made[key]

    return make


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "letters.txt"
    path.write_text(make_text(1500, seed=3), encoding="utf-8")
    return path


# Llama-3-8B's proportions at a sixteenth of its width. Flatness is a matter of what is freed, not of size.
SMALL_8B = {"hidden": 256, "intermediate": 896, "heads": 8, "kv_heads": 2, "vocab": 2048}


def peak(result):
    return result.json()["peak_rss_bytes"]


def test_peak_memory_does_not_depend_on_the_number_of_layers(run, sparse_model, letters, tmp_path):
    peaks = {}
    for layers in (32, 160):
        out = tmp_path / str(layers)
        folder = sparse_model(layers=layers, **SMALL_8B)
        on_disk = sum(file.stat().st_blocks * 512 for file in folder.iterdir())
        assert on_disk < 8_000_000  # 160 layers are 280 MB
        peaks[layers] = peak(run("slice", folder, "--avg", "25%", "--allocate", "constant", "--calib", letters, "--samples", "4",
                                 "--seqlen", "64", "-o", out, "--json", "-q"))
    # What the issue asks for; without giving pages back the 220 MB more of weights would show.
    print(peaks)
    assert peaks[160] <= 1.1 * peaks[32], peaks


def test_peak_memory_of_tasks_does_not_depend_on_the_number_of_layers(run, sparse_model, tmp_path):
    rows = [{"goal": "a game of the city", "sol1": f"old {i}", "sol2": f"new {i}", "label": 0} for i in range(40)]
    (tmp_path / "piqa").mkdir()
    (tmp_path / "piqa/validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shapes = {**SMALL_8B, "hidden": 512, "intermediate": 1792}
    peaks = {layers: peak(run("eval", sparse_model(layers=layers, **shapes), "--tasks", "piqa", "--data-dir", tmp_path, "--json", "-q"))
             for layers in (16, 64)}
    # The heap may keep a layer's room, or two, by how long the paths of files are; the 48 further layers have hundreds of MB.
    assert peaks[64] <= 1.1 * peaks[16] + 32e6, peaks


def test_every_verb_runs_on_a_synthetic_model(run, sparse_model, letters, tmp_path):
    for random in (None, 5):
        folder = sparse_model(random=random, preset="tiny")
        text = ["--samples", "4", "--seqlen", "64", "-q", "--json"]
        assert run("inspect", folder, "--json").json()["layers"] == 4
        scores = run("score", folder, "--calib", letters, *text).json()["values"]
        assert all(value == pytest.approx(1, abs=1e-5) for value in scores) == (random is None)  # layers of zeros add nothing
        out = tmp_path / f"out-{random}"
        run("slice", folder, "--avg", "25%", "--calib", letters, *text, "-o", out)
        for model in (folder, out):
            assert run("eval", model, "--ppl", letters, *text).json()["perplexity"][letters.name]["value"] > 1


def test_the_tool_writes_the_same_bytes_for_the_same_seed(sparse_model, tmp_path):
    first = sparse_model(random=5, preset="tiny")
    subprocess.run([sys.executable, TOOL, tmp_path / "again", "--preset", "tiny", "--random", "5"], check=True, capture_output=True)
    for file in first.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()
    done = subprocess.run([sys.executable, TOOL, first], capture_output=True, text=True)
    assert done.returncode == 2 and "exists" in done.stderr


TEXT = ["--samples", "12", "--seqlen", "128", "-q", "--json"]


@pytest.fixture(scope="module")
def model(sparse_model):
    return sparse_model(random=1, layers=3, **SMALL_8B)


def test_spilled_streams_give_the_same_checkpoint_and_leave_no_file(run, model, letters, tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    slicing = ["slice", model, "--avg", "25%", "--calib", letters, *TEXT]
    run(*slicing, "-o", tmp_path / "memory")
    for name, size in [("spilled", "1"), ("half", "800KB")]:  # 12 windows are 1.6 MB
        run(*slicing, "-o", tmp_path / name, "--activation-memory", size, "--scratch-dir", scratch)
        assert (tmp_path / name / "model.safetensors").read_bytes() == (tmp_path / "memory" / "model.safetensors").read_bytes()
    assert not list(scratch.iterdir())


@pytest.mark.parametrize("verb", [["score", "--calib"], ["score", "--metric", "window:2", "--calib"], ["eval", "--ppl"]], ids=" ".join)
def test_spilled_streams_give_the_same_figures(run, model, letters, tmp_path, verb):
    command = [verb[0], model, *verb[1:], letters, *TEXT]
    results = [run(*command, *spill).json() for spill in ([], ["--activation-memory", "1", "--scratch-dir", tmp_path])]
    for key in ("values", "perplexity"):
        assert results[0].get(key) == results[1].get(key)


def test_a_scratch_file_is_gone_when_the_program_is_killed(binary, model, letters, tmp_path):
    command = [binary, "score", model, "--calib", letters, "--samples", "100", "--seqlen", "128", "--activation-memory", "1", "--scratch-dir", tmp_path]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    for line in running.stderr:
        if "go to a file in" in line:
            break
    descriptors = [os.readlink(entry) for entry in (os.scandir(f"/proc/{running.pid}/fd")) if str(tmp_path) in os.readlink(entry)]
    running.send_signal(signal.SIGKILL)
    running.communicate(timeout=60)
    assert descriptors and all("(deleted)" in name for name in descriptors)
    assert not list(tmp_path.iterdir())


def test_more_scratch_than_the_disk_takes_is_exit_code_5(run, model, letters, tmp_path):
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    result = run("score", model, "--calib", letters, *TEXT, "--activation-memory", "1", "--scratch-dir", tmp_path, expect=5, preexec_fn=limit)
    assert "--scratch-dir" in result.stderr.splitlines()[-1]
    missing = run("score", model, "--calib", letters, *TEXT, "--activation-memory", "1", "--scratch-dir", tmp_path / "none", expect=None)
    assert missing.code != 0 and str(tmp_path / "none") in missing.stderr.splitlines()[-1]


def test_what_cannot_fit_is_refused_before_the_work(run, model, letters, tmp_path):
    # A run that came as far as the first save of its journal would be killed there.
    result = run("slice", model, "--avg", "25%", "--calib", letters, "--samples", "12", "--seqlen", "128", "-o", tmp_path / "out",
                 "--max-memory", "100MB", expect=5, env={"DYNSLICE_JOURNAL": "every", "DYNSLICE_STOP_AFTER": "1"})
    [message] = result.stderr.splitlines()
    for word in ("--max-memory 100 MB", "program", "--seqlen", "--threads"):
        assert word in message, message
    assert not list(tmp_path.iterdir())


def test_less_memory_changes_results_by_rounding_only(run, model, letters):
    command = ["eval", model, "--ppl", letters, *TEXT]
    roomy = json.loads(run(*command, "--dry-run").stdout)
    parts = roomy["memory"]["parts"]
    # Room for an eighth of the chunk, and for no stream to speak of. What the program itself takes differs by a little.
    tight = roomy["memory"]["bytes"] - parts["streams"] - parts.get("chunk_buffers", 0) * 7 // 8 + 4_000_000
    values = [run(*command, *limit).json()["perplexity"][letters.name]["value"] for limit in ([], ["--max-memory", tight])]
    assert values[1] == pytest.approx(values[0], rel=1e-5)


@pytest.mark.parametrize("option", ["--max-memory", "--activation-memory"])
@pytest.mark.parametrize("size", ["much", "-1GB", "0", "12XB"])
def test_a_size_that_is_none_is_wrong_usage(run, model, letters, option, size):
    result = run("score", model, "--calib", letters, *TEXT, f"{option}={size}", expect=2)
    assert option in result.stderr and "2GB" in result.stderr


VERBS = [["score", "--calib"], ["plan", "--avg", "25%", "--calib"], ["plan", "--avg", "25%", "--base", "auto", "--calib"],
         ["slice", "--avg", "25%", "--calib"], ["eval", "--ppl"]]


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_a_dry_run_only_tells(run, model, letters, tmp_path, verb):
    output = ["-o", tmp_path / "out"] if verb[0] != "eval" else []
    command = [verb[0], model, *verb[1:], letters, "--samples", "8", "--seqlen", "128", *output, "--dry-run"]
    told = run(*command, "--json").json()
    assert told["dry_run"] == verb[0] and not list(tmp_path.iterdir())
    memory = told["memory"]
    assert memory["bytes"] == sum(memory["parts"].values()) <= memory["limit_bytes"]
    assert 0 < told["time"]["seconds"] < 3600
    assert (told["disk"]["output_bytes"] > 0) == (verb[0] == "slice")
    shown = run(*command).stdout
    for word in ("memory, at the most", "time, about", "Nothing was done"):
        assert word in shown


def test_a_dry_run_foretells_the_bytes_of_the_output(run, model, letters, tmp_path):
    slicing = ["slice", model, "--avg", "25%", "--allocate", "constant", "--calib", letters, *TEXT, "-o", tmp_path / "out"]
    told = run(*slicing, "--dry-run").json()["disk"]["output_bytes"]
    run(*slicing)
    written = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert told <= written <= told + 100_000  # the header


def test_a_dry_run_of_bench_counts_every_model(run, model):
    options = ["--prompt-tokens", "64", "--decode-tokens", "16", "--repeats", "2"]
    one = run("bench", model, *options, "--dry-run", "--json").json()
    two = run("bench", model, "--against", model, *options, "--dry-run", "--json").json()
    assert one["dry_run"] == "bench" and two["time"]["work"]["forward_flops"] == 2 * one["time"]["work"]["forward_flops"] > 0
    assert two["memory"]["parts"]["against_weights"] == one["memory"]["parts"]["weights"]
    real = run("bench", model, *options, "--json").json()
    assert one["memory"]["parts"]["weights"] == pytest.approx(real["weight_bytes"], rel=0.02)
    assert one["memory"]["parts"]["cache"] == real["cache_bytes"]
    assert 0.5 * one["memory"]["bytes"] <= real["peak_rss_bytes"] <= 1.1 * one["memory"]["bytes"]
    assert "Nothing was done" in run("bench", model, *options, "--dry-run").stdout


# What the program takes before it computes is most of a small model's memory, so the band holds for small and large.
@pytest.mark.parametrize("verb", [["score", "--calib"], ["slice", "--avg", "25%", "--calib"], ["eval", "--ppl"]], ids=lambda verb: verb[0])
@pytest.mark.parametrize("size", ["tiny", "wide"])
def test_real_memory_is_between_half_and_eleven_tenths_of_the_estimate(run, sparse_model, letters, tmp_path, verb, size):
    shapes = {"preset": "tiny"} if size == "tiny" else {"layers": 1, "hidden": 1024, "intermediate": 14336, "heads": 8, "kv_heads": 8, "vocab": 2048}
    folder = sparse_model(random=2, **shapes)
    output = ["-o", tmp_path / "out"] if verb[0] == "slice" else []
    command = [verb[0], folder, *verb[1:], letters, "--samples", "4", "--seqlen", "256", "-q", "--json", *output]
    told = run(*command, "--dry-run").json()["memory"]["bytes"]
    real = peak(run(*command))
    assert 0.5 * told <= real <= 1.1 * told, (told, real)


# Large vocabularies make the heads the most of it.
@pytest.mark.parametrize("vocab", [4096, 32768])
def test_real_memory_of_two_models_side_by_side_is_foretold(run, sparse_model, letters, vocab):
    model, reference = (sparse_model(random=seed, layers=2, hidden=width, intermediate=1024, heads=8, kv_heads=4, vocab=vocab)
                        for seed, width in [(1, 512), (2, 1024)])
    command = ["eval", model, "--against", reference, "--ppl", letters, "--samples", "4", "--seqlen", "256", "-q", "--json"]
    told = run(*command, "--dry-run").json()["memory"]["bytes"]
    real = peak(run(*command))
    assert 0.5 * told <= real <= 1.1 * told, (told, real)


SEARCHES_AND_TRAINING = [["depth", "drop", "--layers", "1", "--order", "ppl"], ["depth", "merge", "--target-layers", "3"],
                  ["depth", "streamline", "--layers", "1"], ["depth", "streamline", "--layers", "1", "--replace", "layer"],
                  ["depth", "streamline", "--layers", "1", "--replace", "swiglu", "--loss", "mse", "--stream-dtype", "bf16"],
                  ["heal"], ["heal", "--keep-activations", "streams"], ["heal", "--distill"], ["score", "--metric", "cka"],
                  ["slice", "--method", "modular", "--avg", "25%", "--allocate", "constant"],
                  ["slice", "--basis", "global", "--avg", "25%"], ["slice", "--basis", "global", "--avg", "25%", "--refit", "none"], ["slice", "--avg", "25%", "--allocate", "constant", "--refit", "all"],
                  ["slice", "--basis", "global", "--avg", "25%", "--directions", "loss"],
                  ["slice", "--basis", "layer", "--avg", "25%", "--allocate", "constant"],
                  ["score", "--metric", "zd"], ["quantize", "--bits", "4"], ["quantize", "--method", "rtn"], ["quantize", "--gguf"],
                  ["quantize", "--bits", "8,3", "--order", "search", "--search-samples", "2"]]


@pytest.mark.parametrize("verb", SEARCHES_AND_TRAINING, ids=" ".join)
def test_real_memory_of_searches_and_training_is_foretold(run, sparse_model, letters, tmp_path, verb):
    # What takes layers away needs some; all else holds one at a time.
    layers = 4 if verb[0] == "depth" else 2
    # What trains, or reads no text, takes little beside the program where the layers are narrow: in the middle of the band they must be wide.
    widths = {"intermediate": 2048} if "--replace" in verb else {"hidden": 1024, "intermediate": 8192} if "zd" in verb else {}
    folder = sparse_model(**{"random": 2, "layers": layers, "hidden": 512, "intermediate": 1024, "heads": 8, "kv_heads": 4, "vocab": 4096, **widths})
    names = 2 if verb[0] == "depth" else 1
    text = ["--text" if verb[0] == "heal" else "--calib", letters, "--samples", "8", "--seqlen", "256"]
    trains = ["--updates", "2", "--batch", "4"] if verb[0] == "heal" or "--replace" in verb else []
    output = ["-o", tmp_path / "out"] if verb[0] != "score" else []
    options = [*verb[names:], *([folder] if verb[-1] == "--distill" else [])]
    command = [*verb[:names], folder, *options, *text, *trains, *output, "-q", "--json"]
    told = run(*command, "--dry-run").json()["memory"]["bytes"]
    real = peak(run(*command))
    assert 0.5 * told <= real <= 1.1 * told, (told, real)


def test_real_memory_of_a_real_model_is_foretold(run, letters):
    real_model = path_from_environment("DYNSLICE_TEST_MODEL")
    command = ["eval", real_model, "--ppl", letters, "--samples", "2", "--seqlen", "256", "-q", "--json"]
    told = run(*command, "--dry-run").json()["memory"]["bytes"]
    real = peak(run(*command))
    assert 0.5 * told <= real <= 1.1 * told, (told, real)
