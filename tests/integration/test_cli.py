"""The program as a user meets it: what it prints, what it writes, how it fails."""

import json
import os
import pathlib
import pty
import re
import resource
import shutil
import signal
import struct
import subprocess

import numpy as np
import pytest

from conftest import Reader

CALIBRATION = ["--samples", "4", "--seqlen", "64"]


@pytest.fixture
def llama(tiny_model):
    return tiny_model("llama")


@pytest.fixture
def slice_args(llama, text_file, tmp_path):
    return ["slice", llama, "--avg", "25%", "--calib", text_file, *CALIBRATION, "-o", tmp_path / "out"]


def assert_fails(result, code, *words):
    """One clear line, the documented exit code, nothing on stdout."""
    lines = [line for line in result.stderr.splitlines() if line.startswith("dynslice: ")]
    assert result.code == code, result.stderr
    assert len(lines) == 1 and lines[0] == result.stderr.splitlines()[-1], result.stderr
    for word in words:
        assert str(word) in lines[0], lines[0]
    assert result.stdout == ""


# --- what it does ---------------------------------------------------------------------------------------------


def test_score_prints_a_table_and_writes_a_file_that_plan_takes(run, llama, text_file, tmp_path):
    scores = tmp_path / "scores.json"
    shown = run("score", llama, "--calib", text_file, *CALIBRATION, "-o", scores).stdout
    written = json.loads(scores.read_text())
    assert written["metric"] == "lr" and len(written["values"]) == 4
    for value in written["values"]:
        assert f"{value:.6f}" in shown
    plan = json.loads(run("plan", llama, "--avg", "25%", "--scores", scores, "--json").stdout)
    assert len(plan["plan"]["dims"]) == 4
    most_redundant = max(range(4), key=lambda i: written["values"][i])
    assert plan["plan"]["ratios"][most_redundant] == max(plan["plan"]["ratios"])


@pytest.mark.parametrize("metric, count", [("lr", 4), ("bi", 4), ("lim", 4), ("angular", 4), ("window:2", 3)])
def test_score_json_has_the_documented_keys(run, llama, text_file, metric, count):
    scores = json.loads(run("score", llama, "--metric", metric, "--calib", text_file, *CALIBRATION, "--json").stdout)
    assert scores["metric"] == metric and len(scores["values"]) == count and scores["tokens"] == 256


@pytest.fixture
def without_text(tmp_path):
    """An environment in which no text is to be found."""
    return {"DYNSLICE_DATA_DIR": str(tmp_path), "DYNSLICE_CACHE": str(tmp_path / "cache"), "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}


def outstanding(folder):
    """Per layer the share of the linears' weights that are more than a standard deviation above their mean."""
    from safetensors.numpy import load_file

    layers = {}
    for name, values in load_file(folder / "model.safetensors").items():
        if name.endswith("_proj.weight"):
            layers.setdefault(int(name.split(".")[2]), []).append(values.astype("float64").ravel())
    return [float(((w - w.mean()) / w.std() > 1).mean()) for w in (np.concatenate(layers[i]) for i in sorted(layers))]


def test_score_by_weights_needs_neither_tokenizer_nor_text(run, tiny_model, without_text, tmp_path):
    folder = shutil.copytree(tiny_model("llama"), tmp_path / "model")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    scores = run("score", folder, "--metric", "zd", "-o", tmp_path / "scores.json", "--json", env=without_text).json()
    assert scores["metric"] == "zd" and scores["more_important"] == "low" and scores["tokens"] == 0
    assert scores["values"] == pytest.approx(outstanding(folder), abs=1e-12)
    assert json.loads((tmp_path / "scores.json").read_text())["values"] == scores["values"]
    assert run("score", folder, "--metric", "zd", "--threads", 1, "--json", env=without_text).json()["values"] == scores["values"]
    shown = run("score", folder, "--metric", "zd", env=without_text).stdout
    assert f"{scores['values'][2]:.6f}" in shown and "tokens" not in shown
    told = run("score", folder, "--metric", "zd", "--dry-run", "--json", env=without_text).json()
    assert told["time"]["work"]["bytes_read"] == 4 * 4 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 160 * 64)


def test_score_by_weights_takes_a_sliced_model(run, slice_args, without_text, tmp_path):
    run(*slice_args)
    scores = run("score", tmp_path / "out", "--metric", "zd", "--json", env=without_text).json()
    assert scores["values"] == pytest.approx(outstanding(tmp_path / "out"), abs=1e-12)


def test_score_by_weights_says_which_options_it_does_not_use(run, llama):
    result = run("score", llama, "--metric", "zd", "--calib", "/no/such/text", *CALIBRATION)
    assert "not used: --calib, --samples, --seqlen" in result.stderr
    assert "not used" not in run("score", llama, "--metric", "zd").stderr


def test_slice_writes_a_checkpoint_that_eval_reads(run, slice_args, text_file, tmp_path):
    sliced = json.loads(run(*slice_args, "--json").stdout)
    out = tmp_path / "out"
    assert sliced["output"] == str(out)
    assert sliced["parameters"]["after"] != sliced["parameters"]["before"]
    assert set(sliced["bytes"]) >= {"before", "after"} and set(sliced["flops_per_token"]) == {"before", "after"}
    assert sliced["wall_seconds"] > 0 and sliced["peak_rss_bytes"] > 0
    assert len(sliced["plan"]["ratios"]) == len(sliced["plan"]["dims"]) == 4
    # The header says what was promised: parameters and bytes.
    with open(out / "model.safetensors", "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    sizes = [end - begin for name, entry in header.items() if name != "__metadata__" for begin, end in [entry["data_offsets"]]]
    assert sum(sizes) == sliced["bytes"]["after"]
    provenance = json.loads((out / "dynslice.json").read_text())
    assert provenance["plan"] == sliced["plan"] and provenance["source"]["model.safetensors"]
    assert (out / "tokenizer.json").exists() and not (tmp_path / "out.partial").exists()

    measured = json.loads(run("eval", out, "--ppl", text_file, "--seqlen", "64", "--samples", "4", "--json").stdout)
    result = measured["perplexity"][text_file.name]
    assert result["windows"] == 4 and result["tokens"] == 256 and result["seqlen"] == 64 and result["value"] > 1
    assert measured["tokens_per_second"] > 0 and measured["peak_rss_bytes"] > 0


def test_two_runs_write_the_same_bytes(run, slice_args, tmp_path):
    run(*slice_args)
    first = (tmp_path / "out" / "model.safetensors").read_bytes()
    run(*slice_args, "--force")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == first


def test_a_plan_file_is_followed(run, llama, text_file, tmp_path):
    plan = tmp_path / "plan.json"
    plan.write_text('{"dims": [48, 64, 32, 40], "hidden_size": 64}')
    sliced = run("slice", llama, "--plan", plan, "--calib", text_file, *CALIBRATION, "-o", tmp_path / "out", "--json")
    assert json.loads(sliced.stdout)["plan"]["dims"] == [48, 64, 32, 40]


@pytest.mark.parametrize("quantity, key", [("params", "parameters"), ("bytes", "bytes"), ("flops", "flops_per_token")])
@pytest.mark.parametrize("allocation", ["constant", "lr"])
def test_a_target_is_met_as_nearly_as_widths_allow(run, llama, text_file, quantity, key, allocation):
    arguments = ["plan", llama, "--allocate", allocation, "--calib", text_file, "--samples", "2", "--seqlen", "64", "--round-to", "1", "--json"]

    def removed(*more):
        size = run(*arguments, *more).json()[key]
        return 1 - size["after"] / size["before"]

    met = removed("--target", f"{quantity}=20%")
    # One of the 64 directions, in every layer or in one, is the least step.
    assert abs(met - 0.2) < 0.02
    assert removed("--avg", "20%") < met  # a ratio of the width removes less than that share of the model


def test_base_auto_reports_every_point_and_takes_the_best(run, llama, text_file, tmp_path):
    plan = json.loads(run("plan", llama, "--avg", "5%", "--base", "auto", "--calib", text_file, *CALIBRATION, "--round-to", "1",
                          "--json").stdout)["plan"]
    sweep = plan["provenance"]["base_sweep"]
    assert [round(point["base"], 6) for point in sweep] == [0.05, 0.03, 0.01, 0.0]
    best = min(sweep, key=lambda point: point["held_out_loss"])
    assert plan["base"] == best["base"]


def test_the_head_can_be_sliced(run, slice_args, text_file, tmp_path):
    run(*slice_args, "--slice-head", "--allocate", "constant")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dynslice"]["head_width"] == 48
    run("eval", tmp_path / "out", "--ppl", text_file, "--seqlen", "64", "--samples", "2")


def test_bench_measures_two_models_in_one_run(run, slice_args, llama, tmp_path):
    run(*slice_args)
    options = ["--prompt-tokens", "16", "--decode-tokens", "3", "--repeats", "2", "--batch", "2"]
    result = run("bench", tmp_path / "out", "--against", llama, *options, "--json").json()
    for report in (result, result["against"]):
        assert len(report["prefill"]["seconds"]) == len(report["decode"]["seconds"]) == 2
        latency = report["decode"]["latency_seconds"]
        assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"]
        assert report["weight_bytes"] > 0 and report["cache_bytes"] > 0
    for part in ("prefill", "decode"):
        speeds = [report[part]["tokens_per_second"] for report in (result, result["against"])]
        assert result["ratio"][part] == pytest.approx(speeds[0] / speeds[1])
    assert "Ratio of the first to the second: prefill" in run("bench", tmp_path / "out", "--against", llama, *options).stdout


def test_bench_refuses_more_tokens_than_the_model_takes(run, llama):
    assert_fails(run("bench", llama, "--prompt-tokens", "512", "--decode-tokens", "1", expect=None), 2, "513", "512")


def test_bench_gemm_names_the_library_for_every_dtype(run):
    gemm = run("bench", "--gemm", "--json").json()["gemm"]
    assert set(gemm) == {"fp32", "bf16", "fp64"}
    assert all(one["gflops"] > 0 and one["library"] in ("MKL", "oneDNN", "fp32") for one in gemm.values())


def test_inspect_tells_shapes(run, llama):
    facts = json.loads(run("inspect", llama, "--json").stdout)
    assert facts["layers"] == 4 and facts["hidden_size"] == 64 and facts["ordinary_shapes"] is True


def test_the_model_may_come_from_the_environment(run, llama, text_file):
    result = run("eval", "--ppl", text_file, "--seqlen", "64", "--samples", "1", "--json", env={"DYNSLICE_MODEL": str(llama)})
    assert json.loads(result.stdout)["provenance"]["model"] == str(llama)


def test_help_and_version_need_no_library(run_command, binary, tmp_path):
    alone = tmp_path / "dynslice"
    shutil.copy(binary, alone)
    for arguments in (["--help"], ["--version"], ["slice", "--help"], ["slice", "--help-all"]):
        assert "dynslice" in run_command([alone, *arguments]).stdout


# --- help -----------------------------------------------------------------------------------------------------

VERBS = ["score", "plan", "slice", "depth drop", "depth merge", "depth streamline", "heal", "quantize", "eval", "compare", "bench",
         "generate", "inspect", "models", "export", "run", "completion"]  # fmt: skip
GROUPS = ["What", "How much", "Training", "Sweep", "Text", "Output", "Machine", "Help"]


def options_in(text):
    return re.findall(r"^  (?:-\w,)?(--[a-z-]+)", text, re.MULTILINE)


def test_help_of_slice_fits_on_a_page(run):
    shown = options_in(run("slice", "--help").stdout)
    assert len(shown) <= 17 and {"--avg", "--target", "--calib", "--output", "--help-all"} <= set(shown)


@pytest.mark.parametrize("verb", VERBS)
def test_help_and_help_all_group_the_options(run, verb):
    """What --help shows is the beginning of each group of --help-all, which --help counts the rest of."""
    help_text, all_text = (run(*verb.split(), flag).stdout for flag in ("--help", "--help-all"))
    shown, known = options_in(help_text), options_in(all_text)
    assert len(known) == len(set(known)) and [option for option in known if option in shown] == shown
    assert {"--help", "--help-all"} <= set(shown)
    for text in (help_text, all_text):
        titles = [title for title in re.findall(r"^([A-Z][a-z ]+):$", text, re.MULTILINE) if title != "Arguments"]
        assert titles == [title for title in GROUPS if title in titles]
    more = re.search(rf"Run `dynslice {verb} --help-all` to see (\d+) more options\.\n$", help_text)
    assert (int(more[1]) if more else 0) == len(known) - len(shown)
    assert max(map(len, all_text.splitlines())) <= 110


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("flag", ["--help", "--help-all"])
def test_an_exclusion_is_told_once(run, verb, flag):
    text = run(*verb.split(), flag).stdout
    pairs = []
    for option, entry in re.findall(r"^  (?:-\w,)?(--[a-z-]+)(.*?)(?=^  -|^$)", text, re.MULTILINE | re.DOTALL):
        told = re.search(r"not with ([^)]*)\)$", " ".join(entry.split()))
        pairs += [frozenset((option, other)) for other in told[1].split(", ")] if told else []
    assert len(pairs) == len(set(pairs))
    assert text.count("not with --plan") <= 1
    for pair in pairs:
        assert pair <= set(options_in(text)), "an option that is not shown"


def test_what_excludes_each_other_is_told_at_the_plan_file(run):
    text = " ".join(run("slice", "--help-all").stdout.split())
    assert "(not with --allocate, --attention, --avg, --base, --basis," in text


def test_help_all_of_the_program_tells_every_verb(run):
    text = run("--help-all").stdout
    for verb in VERBS:
        assert f"Usage: dynslice {verb} " in text
    assert set(options_in(run("slice", "--help-all").stdout)) <= set(options_in(text))
    assert "--threshold" in run("depth", "--help-all").stdout


# --- how it fails ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], []),
        (["sliec"], []),
        (["slice", "--avg", "120%"], ["--avg", "120%"]),
        (["slice", "--avg", "25"], ["--avg 25", "25%?"]),
        (["slice", "--avg", "-5%"], ["--avg"]),
        (["slice", "--avg", "many"], ["--avg", "many"]),
        (["slice", "--avg", "25%", "--base", "2.5"], ["--base"]),
        (["slice", "--avg", "25%", "--round-to", "0"], ["--round-to"]),
        (["slice", "--avg", "25%", "--allocate", "best"], ["--allocate"]),
        (["slice", "--avg", "25%", "--calib-range", "5"], ["--calib-range"]),
        (["slice", "--avg", "25%", "--calib-range", "9:5"], ["--calib-range"]),
        (["slice", "--plan", "p.json", "--avg", "25%"], ["--plan"]),
        (["slice", "--plan", "p.json", "--base", "5%"], ["--plan"]),
        (["eval", "--no-such-option"], []),
    ],
)
def test_wrong_usage_is_exit_code_2(run, arguments, words):
    assert_fails(run(*arguments, expect=None), 2, *words)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--avg", "25%", "--base", "30%"], ["--base"]),
        (["--avg", "90%"], ["--max-ratio"]),
        (["--avg", "25%", "--allocate", "constant", "--base", "10%"], ["--base"]),
        (["--avg", "25%", "--epsilon", "1"], ["--epsilon", "--allocate softmax", "lr"]),
        (["--avg", "25%", "--trials", "3"], ["--trials", "--allocate search", "lr"]),
        (["--avg", "25%", "--base", "10%", "--sweep-samples", "4"], ["--sweep-samples", "--base auto"]),
        (["--avg", "25%", "--round-to", "65"], ["--round-to"]),
        (["--avg", "94%", "--max-ratio", "99%", "--base", "80%"], ["layer", "--max-ratio"]),
        (["--avg", "25%", "--seqlen", "513"], ["--seqlen 513", "512"]),
        ([], ["--avg"]),
        (["--avg", "25%", "--device", "tpu"], ["--device tpu"]),
        (["--avg", "25%", "--dtype", "int8"], ["--dtype int8"]),
        (["--avg", "25%", "--samples", "100000"], ["100000"]),
        (["--avg", "25%", "--calib-range", "5000000:5000100"], ["range"]),
    ],
)
def test_options_that_do_not_fit_are_exit_code_2(run, llama, text_file, tmp_path, arguments, words):
    assert_fails(run("slice", llama, "--calib", text_file, "-o", tmp_path / "out", *arguments, expect=None), 2, *words)


def test_an_existing_output_folder_needs_force(run, slice_args, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("keep")
    assert_fails(run(*slice_args, expect=None), 2, tmp_path / "out", "--force")
    assert (tmp_path / "out" / "precious").read_text() == "keep"


@pytest.mark.parametrize("model, words", [("/no/such/folder", ["/no/such/folder"]), ("missing.gguf", ["missing.gguf"])])
def test_a_missing_model_is_exit_code_4(run, model, words):
    assert_fails(run("eval", model, expect=None), 4, *words)


def test_missing_text_is_exit_code_4_and_says_where_to_put_it(run, llama, tmp_path):
    environment = {"DYNSLICE_DATA_DIR": str(tmp_path), "DYNSLICE_CACHE": str(tmp_path), "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    assert_fails(run("eval", llama, "--ppl", "wikitext2", expect=None, env=environment), 4, "wiki.test.raw")
    assert_fails(run("eval", llama, "--ppl", tmp_path / "none.txt", expect=None), 4, "none.txt")


def rewrite_config(folder, change):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def rewrite_safetensors(folder, change):
    """Lets `change(header, data)` edit a safetensors file; returns its new (header, data)."""
    path = folder / "model.safetensors"
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header, data = change(json.loads(content[8 : 8 + length]), content[8 + length :])
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)


def without(key):
    def change(header, data):
        header.pop(key)
        return header, data

    return change


def renamed(key):
    def change(header, data):
        header[key + "_gone"] = header.pop(key)
        return header, data

    return change


def with_entry(key, **fields):
    def change(header, data):
        header[key].update(fields)
        return header, data

    return change


WEIGHT = "model.layers.1.mlp.down_proj.weight"


def with_nan(header, data):
    begin = header[WEIGHT]["data_offsets"][0]
    return header, data[:begin] + struct.pack("<f", float("nan")) + data[begin + 4 :]


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-100]), ["model.safetensors"]),
        (lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:50]), ["model.safetensors"]),
        (lambda f: (f / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b"{}"), ["model.safetensors"]),
        (lambda f: rewrite_safetensors(f, renamed(WEIGHT)), [WEIGHT]),
        (lambda f: rewrite_safetensors(f, with_entry(WEIGHT, shape=[160, 64])), [WEIGHT]),
        (lambda f: rewrite_safetensors(f, with_entry(WEIGHT, dtype="F8_E9")), [WEIGHT]),
        (lambda f: rewrite_safetensors(f, with_nan), [WEIGHT]),
        (lambda f: rewrite_config(f, lambda c: c.pop("hidden_size")), ["config.json", "hidden_size"]),
        (lambda f: rewrite_config(f, lambda c: c.update(hidden_size="large")), ["config.json", "hidden_size"]),
        (lambda f: rewrite_config(f, lambda c: c.update(num_attention_heads=0)), ["config.json", "num_attention_heads"]),
        (lambda f: rewrite_config(f, lambda c: c.update(model_type="gemma5_text")), ["gemma5_text", "the nearest is gemma3_text"]),
        (lambda f: rewrite_config(f, lambda c: c.update(model_type="mamba")), ["config.json", "mamba", "llama", "mistral", "qwen2", "qwen3"]),
        (lambda f: rewrite_config(f, lambda c: c.update(vocab_size=50)), ["model.embed_tokens.weight"]),
        (lambda f: (f / "config.json").write_text("{"), ["config.json", "JSON"]),
        (lambda f: (f / "tokenizer.json").write_text("[]"), ["tokenizer.json"]),
    ],
    ids=["truncated", "cut in the header", "lying header length", "missing tensor", "wrong shape", "unknown dtype", "NaN", "missing key",
         "wrong type", "zero heads", "architecture of a known family", "unknown architecture", "vocabularies differ", "broken config", "broken tokenizer"],
)
def test_bad_input_is_exit_code_3_and_leaves_nothing(run, tiny_model, text_file, tmp_path, damage, words):
    folder = shutil.copytree(tiny_model("llama"), tmp_path / "model")
    damage(folder)
    result = run("slice", folder, "--avg", "25%", "--calib", text_file, *CALIBRATION, "-o", tmp_path / "out", expect=None)
    assert_fails(result, 3, *words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_tokenizer_of_another_model_is_exit_code_3(run, tiny_model, text_file, tmp_path):
    folder = shutil.copytree(tiny_model("llama"), tmp_path / "model")

    def shift(tokenizer):
        vocabulary = tokenizer["model"]["vocab"]
        for token in vocabulary:
            vocabulary[token] += 100_000

    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    shift(tokenizer)
    path.write_text(json.dumps(tokenizer))
    assert_fails(run("score", folder, "--calib", text_file, *CALIBRATION, expect=None), 3, "tokenizer")


def test_an_unreadable_file_is_exit_code_3(run, tiny_model, text_file, tmp_path):
    folder = shutil.copytree(tiny_model("llama"), tmp_path / "model")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()
    assert_fails(run("score", folder, "--calib", text_file, *CALIBRATION, expect=None), 3, "model.safetensors")


def test_a_full_disk_is_exit_code_5_and_can_be_gone_on_from(run, slice_args, tmp_path):
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    assert_fails(run(*slice_args, expect=None, preexec_fn=limit), 5, "out")
    assert not (tmp_path / "out").exists()
    run(*slice_args, "--resume")
    assert (tmp_path / "out" / "dynslice.json").exists() and not (tmp_path / "out.partial").exists()


def test_output_that_cannot_be_written_is_exit_code_5(binary, llama):
    with open("/dev/full", "w") as full:
        done = subprocess.run([binary, "inspect", llama], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 5 and done.stderr.startswith("dynslice: stdout")


# --- messages ---------------------------------------------------------------------------------------------------


def messages(log_file):
    """(level, message) of every line; each has a time."""
    lines = [re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d \[(\w+)\] (.*)", line) for line in log_file.read_text().splitlines()]
    return [line.groups() for line in lines]


def test_a_log_file_has_every_message_and_changes_nothing_else(run, llama, text_file, tmp_path):
    command = ["score", llama, "--calib", text_file, *CALIBRATION]
    log_file = tmp_path / "folder" / "run.log"
    shown = run(*command, "-v", "--log-file", log_file).stderr.splitlines()
    heading, *rest = messages(log_file)
    assert heading[0] == "info" and heading[1].endswith(f"--log-file {log_file}")
    assert len(shown) > 2 and rest == [("debug", line) for line in shown]
    assert run(*command, "--log-file", log_file).stderr == run(*command).stderr
    assert [level for level, _ in messages(log_file)] == 2 * ["info", *(len(shown) * ["debug"])]


def test_the_error_that_ends_a_run_is_in_the_log_file(run, llama, tmp_path):
    log_file = tmp_path / "run.log"
    result = run("score", llama, "--calib", tmp_path / "none.txt", "--log-file", log_file, expect=None)
    assert_fails(result, 4, "none.txt")
    assert messages(log_file)[-1] == ("error", result.stderr.splitlines()[-1].removeprefix("dynslice: "))


def test_a_log_file_that_cannot_be_written_is_exit_code_5(run, llama, tmp_path):
    for path in (tmp_path, "/dev/full"):
        assert_fails(run("inspect", llama, "--log-file", path, expect=None), 5, path, "log file cannot be written")


def test_a_terminal_gets_colours_and_messages_above_the_bar(binary, tiny_model, text_file, tmp_path):
    folder = tiny_model("llama", num_hidden_layers=64)
    colourful = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    leader, follower = pty.openpty()
    running = subprocess.Popen([binary, "score", folder, "--calib", text_file, "--samples", "100", "--seqlen", "128", "-v"],
                               stdout=subprocess.PIPE, stderr=follower, env={**colourful, "TERM": "xterm"})
    os.close(follower)
    shown = Reader(leader)
    before = shown.wait_for("Scoring .*token-layers/s")
    running.send_signal(signal.SIGINT)
    end = shown.rest()
    os.close(leader)
    running.communicate(timeout=60)
    assert re.search("\033\\[36m.*tokens\033\\[m\r\n", before)  # of the debug level
    assert end.splitlines()[-1].startswith("\033[31m\033[1mdynslice: \033[minterrupted")


def test_a_sliced_model_is_neither_scored_nor_sliced_again(run, slice_args, text_file, tmp_path):
    run(*slice_args)
    for verb in (["score"], ["plan", "--avg", "25%"], ["slice", "--avg", "25%"]):
        result = run(verb[0], tmp_path / "out", *verb[1:], "--calib", text_file, *CALIBRATION, expect=None)
        assert_fails(result, 2, "sliced", "dense model")


def test_force_never_removes_the_source(run, tiny_model, text_file, tmp_path):
    folder = shutil.copytree(tiny_model("llama"), tmp_path / "parent" / "model")
    for out in (folder, tmp_path / "parent"):
        result = run("slice", folder, "--avg", "25%", "--calib", text_file, *CALIBRATION, "-o", out, "--force", expect=None)
        assert_fails(result, 2, "holds the model")
    assert (folder / "model.safetensors").exists()


def test_paths_that_are_not_utf8_are_written_down_all_the_same(binary, llama, text_file, tmp_path):
    out = bytes(tmp_path) + b"/out\xe9"
    command = [binary, "slice", llama, "--avg", "25%", "--calib", text_file, *CALIBRATION, "-o", out, "--json"]
    done = subprocess.run(command, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["output"].endswith("out\ufffd")


@pytest.mark.parametrize("name, words", [("none/scores.json", ["none/scores.json", "folder"]), ("", ["folder"])], ids=["no folder", "a folder"])
def test_an_output_file_that_cannot_be_is_told_before_the_work(run, llama, text_file, tmp_path, name, words):
    result = run("score", llama, "--calib", text_file, *CALIBRATION, "-o", tmp_path / name, expect=None)
    assert_fails(result, 4, *words)
    assert "Scoring" not in result.stderr


def test_output_may_go_to_a_device(run, llama, text_file):
    run("score", llama, "--calib", text_file, *CALIBRATION, "-o", "/dev/null", "-q")
    assert pathlib.Path("/dev/null").is_char_device()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "kill"])
def test_a_stopped_slice_leaves_no_checkpoint_and_says_so(binary, tiny_model, text_file, tmp_path, number):
    """Without a journal to go on from; test_resume.py has runs with one."""
    folder = tiny_model("llama", num_hidden_layers=64)
    command = [binary, "slice", folder, "--avg", "25%", "--allocate", "constant", "--calib", text_file, "--samples", "200", "--seqlen", "128",
               "-o", tmp_path / "out"]  # fmt: skip
    leader, follower = pty.openpty()  # where progress is shown at once
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=follower, env={**os.environ, "DYNSLICE_JOURNAL": "off"})
    os.close(follower)
    shown = Reader(leader)
    shown.wait_for("Slicing .*token-layers/s")
    running.send_signal(number)
    assert shown.rest().splitlines()[-1] == "dynslice: interrupted"
    os.close(leader)
    stdout, _ = running.communicate(timeout=60)
    assert running.returncode == 130 and stdout == b""
    assert not list(tmp_path.iterdir())


def test_a_plan_of_another_model_is_exit_code_3(run, llama, text_file, tmp_path):
    plan = tmp_path / "plan.json"
    for content, words in [('{"ratios": [0.1, 1.2, 0.1, 0.1]}', ["layer 1", "1.2"]), ('{"ratios": [0.1]}', ["1 layers"]), ("nonsense", ["JSON"])]:
        plan.write_text(content)
        result = run("slice", llama, "--plan", plan, "--calib", text_file, *CALIBRATION, "-o", tmp_path / "out", expect=None)
        assert_fails(result, 3, plan, *words)
    assert not (tmp_path / "out").exists()
