"""`dynslice compare`: several models in one table, with what is known kept from run to run."""

import csv
import json
import shutil
import signal

import numpy as np
import pytest

TEXT = ["--seqlen", 64, "--samples", 16]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A folder with two small tasks."""
    folder = tmp_path_factory.mktemp("tasks")
    words = "house city king army song album river season".split()
    rows = [{"goal": f"the {a} of the {b}", "sol1": f"was {b} and {a}", "sol2": f"in {a} for {a}", "label": (i + j) % 2}
            for i, a in enumerate(words) for j, b in enumerate(words)]
    (folder / "piqa").mkdir()
    (folder / "piqa" / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    questions = [{"id": str(i), "question": f"which {a} was first", "answerKey": "ABC"[i % 3],
                  "choices": {"text": [a, words[i % 8 - 1], "the song"], "label": ["A", "B", "C"]}} for i, a in enumerate(words * 4)]
    (folder / "arc_easy").mkdir()
    (folder / "arc_easy" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    return folder


@pytest.fixture(scope="module")
def models(run, tiny_model, text_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for ratio in (10, 25):
        run("slice", tiny_model("llama"), "--avg", f"{ratio}%", "--calib", text_file, "--samples", 4, "--seqlen", 64, "-o", folder / f"sliced-{ratio}")
    shutil.copytree(tiny_model("llama"), folder / "dense")
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture
def compare(run, text_file, tasks, tmp_path):
    """compare(models..., options...) -> Result, with a cache of this test alone."""

    def start(*arguments, **options):
        env = {"DYNSLICE_CACHE": tmp_path / "cache", **options.pop("env", {})}
        text = [] if "--seqlen" in arguments else TEXT
        return run("compare", *arguments, "--data-dir", tasks, *text, env=env, **options)

    return start


@pytest.fixture
def small(text_file):
    return ["--ppl", text_file, "--no-speed"]


def figures(result):
    return [model["figures"] for model in result.json()["models"]]


# --- figures ----------------------------------------------------------------------------------------------------


def test_perplexity_and_size_are_those_of_eval_and_inspect(run, compare, models, small, text_file):
    result = compare(models["dense"], models["sliced-10"], models["sliced-25"], *small, "--json").json()
    for model, name in zip(result["models"], ["dense", "sliced-10", "sliced-25"]):
        assert model["model"] == model["path"] == str(models[name]) and len(model["sha256"]) == 64 and model["kept"] == []
        alone = run("eval", models[name], "--ppl", text_file, *TEXT, "--json").json()["perplexity"][text_file.name]
        found, shape = model["figures"], run("inspect", models[name], "--json").json()
        assert found["perplexity"]["value"] == pytest.approx(alone["value"], rel=1e-9)
        assert found["perplexity"]["stderr"] == pytest.approx(alone["stderr"], rel=1e-9)
        assert found["bits_per_byte"]["value"] == pytest.approx(alone["bits_per_byte"], rel=1e-9)
        assert found["parameters"]["value"] == shape["parameters"]
    first, *others = (model["figures"] for model in result["models"])
    assert "difference" not in first["perplexity"] and "ratio" not in first["parameters"]
    for other in others:
        change = other["perplexity"]
        assert change["difference"] == pytest.approx(change["value"] - first["perplexity"]["value"], rel=1e-9)
        assert change["low"] <= change["difference"] <= change["high"]
        assert other["parameters"]["ratio"] == other["parameters"]["value"] / first["parameters"]["value"]
    assert result["bootstrap"] == {"resamples": 10000, "seed": 0, "level": 0.95}


def test_intervals_are_those_of_a_bootstrap_over_pairs(compare, models, tasks, small, tmp_path, run):
    """numpy's own resamples of the answers that eval logs give the same intervals, but for their randomness."""
    found = figures(compare(models["dense"], models["sliced-25"], "--no-speed", "--tasks", "piqa,arc_easy", "--json"))[1]
    log = tmp_path / "log.jsonl"
    run("eval", models["sliced-25"], "--tasks", "piqa,arc_easy", "--against", models["dense"], "--data-dir", tasks, "--log-samples", log)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    generator = np.random.default_rng(1)
    for task in ("piqa", "arc_easy"):
        for name, key in [("acc", "right"), ("acc_norm", "right_norm")]:
            change = np.array([line[key] - float(line["against"][key]) for line in lines if line["task"] == task])
            means = change[generator.integers(len(change), size=(10000, len(change)))].mean(1)
            figure = found[f"tasks.{task}.{name}"]
            assert figure["difference"] == pytest.approx(change.mean(), abs=1e-12)
            low, high = np.quantile(means, [0.025, 0.975])
            assert [figure["low"], figure["high"]] == pytest.approx([low, high], abs=1.01 / len(change))
        alike = [line["right"] == line["against"]["right"] for line in lines if line["task"] == task]
        assert found[f"tasks.{task}.agreement"]["value"] == pytest.approx(np.mean(alike))
        assert 0 <= found[f"tasks.{task}.stability"]["value"] <= 1
    assert "perplexity" not in found  # as eval: only with --ppl then


def test_divergences_are_those_of_eval_against(run, compare, models, small, text_file):
    first, other = figures(compare(models["dense"], models["sliced-25"], *small, "--kl", "--json"))
    alone = run("eval", models["sliced-25"], "--against", models["dense"], "--ppl", text_file, *TEXT, "--json").json()
    divergence = alone["divergence"][text_file.name]
    assert other["kl"] == {"value": pytest.approx(divergence["kl"]["mean"]), "stderr": pytest.approx(divergence["kl"]["stderr"])}
    assert other["kl_p99"]["value"] == pytest.approx(divergence["kl"]["quantiles"]["p99"])
    assert other["same_top"]["value"] == divergence["same_top"]["value"]
    assert other["perplexity"]["value"] == pytest.approx(alone["perplexity"][text_file.name]["value"])
    assert first["perplexity"]["value"] == pytest.approx(divergence["perplexity"]["value"]) and "kl" not in first


def test_the_same_weights_differ_in_nothing(compare, models, small, tiny_model):
    first, other = figures(compare(models["dense"], tiny_model("llama"), *small, "--kl", "--tasks", "piqa", "--json"))
    assert other["perplexity"]["difference"] == other["perplexity"]["low"] == other["perplexity"]["high"] == 0
    assert other["kl"]["value"] == 0 and other["same_top"]["value"] == 1
    assert other["tasks.piqa.acc"]["difference"] == other["tasks.piqa.acc"]["high"] == 0


def test_speed_is_measured_beside_the_first_model(compare, models, text_file):
    speed = ["--ppl", text_file, "--prompt-tokens", 16, "--decode-tokens", 4, "--repeats", 2]
    first, *others = figures(compare(models["dense"], models["sliced-10"], models["sliced-25"], *speed, "--json"))
    for key in ("prefill_tokens_per_second", "decode_tokens_per_second"):
        assert first[key]["value"] > 0 and "ratio" not in first[key]
        assert all(other[key]["value"] > 0 and other[key]["ratio"] > 0 for other in others)
    assert others[0]["decode_tokens_per_second"]["ratio"] == pytest.approx(others[0]["decode_tokens_per_second"]["value"] / first["decode_tokens_per_second"]["value"])


def test_models_with_different_tokenizers_have_no_intervals(compare, models, small, tmp_path):
    other = shutil.copytree(models["dense"], tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:-20]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    found = figures(compare(models["dense"], other, *small, "--json"))[1]
    assert "difference" in found["bits_per_byte"] and "low" not in found["bits_per_byte"] and "low" not in found["perplexity"]
    assert "tokenizer" in compare(models["dense"], other, *small, "--kl", expect=2).stderr


# --- forms ------------------------------------------------------------------------------------------------------


def test_table_csv_and_markdown_say_what_the_json_does(compare, models, small, tmp_path):
    command = [models["dense"], models["sliced-25"], *small, "--tasks", "piqa"]
    found = figures(compare(*command, "--json"))
    shown = compare(*command, "--csv", tmp_path / "t.csv", "--markdown", tmp_path / "t.md").stdout
    change = found[1]["perplexity"]
    cell = f"{change['value']:.3f} {change['difference']:+.3f} [{change['low']:+.3f}, {change['high']:+.3f}]"
    assert cell in shown and "sliced-25" in shown.splitlines()[0] and "paired bootstrap" in shown
    rows = list(csv.DictReader((tmp_path / "t.csv").open(encoding="utf-8")))
    assert len(rows) == sum(map(len, found))
    for row in rows:
        figure = found[[str(models["dense"]), str(models["sliced-25"])].index(row["model"])][row["figure"]]
        for key in ("value", "stderr", "difference", "low", "high", "ratio"):
            assert (float(row[key]) if row[key] else None) == figure.get(key), (row, figure)
    lines = (tmp_path / "t.md").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "| | dense | sliced-25 |" and lines[1] == "|---|---:|---:|" and any(cell in line for line in lines)


def test_models_of_one_name_are_shown_as_typed(compare, models, small, tmp_path):
    other = shutil.copytree(models["dense"], tmp_path / "dense")
    header = compare(models["dense"], other, *small).stdout.splitlines()[0]
    assert str(models["dense"]) in header and str(other) in header


def test_a_file_that_cannot_be_written_is_refused_before_the_work(compare, models, small, tmp_path):
    line = compare(models["dense"], models["sliced-25"], *small, "--csv", tmp_path / "none" / "t.csv", expect=4).stderr
    assert "t.csv" in line and "Measuring" not in line


# --- what is kept -----------------------------------------------------------------------------------------------


def results(tmp_path):
    return sorted((tmp_path / "cache" / "results").glob("*.json"))


def test_one_more_model_does_not_measure_the_others_again(compare, models, small, tmp_path):
    command = [*small, "--tasks", "piqa", "--json"]
    two = compare(models["dense"], models["sliced-25"], *command)
    assert two.stderr.count("Measuring the") == 4
    three = compare(models["dense"], models["sliced-25"], models["sliced-10"], *command)
    assert three.stderr.count("Measuring the") == 2 and "4 of 6 measurements are there" in three.stderr
    before, after = two.json()["models"], three.json()["models"]
    assert [model["figures"] for model in before] == [model["figures"] for model in after[:2]]
    assert after[0]["kept"] == ["perplexity of dense", "tasks of dense"] and after[2]["kept"] == []
    again = compare(models["sliced-10"], models["dense"], *command)  # in another order
    assert "Measuring" not in again.stderr


def test_one_more_task_asks_only_that_one(compare, models, tmp_path):
    command = [models["dense"], models["sliced-25"], "--no-speed", "--json", "--tasks"]
    compare(*command, "piqa")
    assert len(results(tmp_path)) == 2
    more = compare(*command, "arc_easy,piqa").json()
    assert len(results(tmp_path)) == 4 and all(model["kept"] == [] for model in more["models"])
    assert "Measuring" not in compare(*command, "piqa,arc_easy").stderr
    compare(*command, "piqa", "--limit", 5)
    assert len(results(tmp_path)) == 6


@pytest.mark.parametrize("options", [["--protocol", "llamacpp"], ["--dtype", "bf16"], ["--seqlen", 32, "--samples", 16], ["--ppl-range", "100:"], ["--shuffle", 3]])
def test_other_options_are_measured_anew(compare, models, small, tmp_path, options):
    command = [models["dense"], models["sliced-25"], *small]
    compare(*command)
    assert "Measuring" not in compare(*command).stderr
    assert compare(*command, *options).stderr.count("Measuring the") == 2


def test_another_text_or_other_weights_are_measured_anew(compare, models, small, tmp_path, text_file):
    model = shutil.copytree(models["sliced-25"], tmp_path / "changing")
    command = [models["dense"], model, "--no-speed", "--ppl", tmp_path / "text.txt"]
    shutil.copy(text_file, tmp_path / "text.txt")
    compare(*command)
    shutil.copytree(model, tmp_path / "moved")
    assert "Measuring" not in compare(models["dense"], tmp_path / "moved", *command[2:]).stderr  # the same contents elsewhere
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[-2] ^= 1
    (model / "model.safetensors").write_bytes(weights)
    assert compare(*command).stderr.count("Measuring the") == 1
    (tmp_path / "text.txt").write_text(text_file.read_text() + "more")
    assert compare(*command).stderr.count("Measuring the") == 2


def test_no_cache_neither_uses_nor_keeps(compare, models, small, tmp_path):
    command = [models["dense"], models["sliced-25"], *small]
    compare(*command, "--no-cache")
    assert not (tmp_path / "cache").exists()
    compare(*command)
    assert compare(*command, "--no-cache").stderr.count("Measuring the") == 2


def test_damaged_results_are_measured_again_with_a_warning(compare, models, small, tmp_path):
    command = [models["dense"], models["sliced-25"], *small, "--tasks", "piqa", "--json"]
    expected = figures(compare(*command))
    for i, file in enumerate(results(tmp_path)):
        content, middle = file.read_bytes(), file.stat().st_size // 2
        file.write_bytes(content[:middle] if i % 2 else content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    again = compare(*command)
    assert again.stderr.count("kept result is damaged") == 4 and again.stderr.count("Measuring the") == 4
    assert figures(again) == expected
    assert "is damaged" not in compare(*command).stderr


def test_a_run_that_was_killed_goes_on_from_what_it_had(compare, models, small, tmp_path):
    command = [models["dense"], models["sliced-25"], models["sliced-10"], *small, "--tasks", "piqa", "--kl", "--json"]
    whole = compare(*command, env={"DYNSLICE_CACHE": tmp_path / "other"})
    assert whole.stderr.count("Measuring the") == 5
    compare(*command, env={"DYNSLICE_STOP_AFTER": "2"}, expect=-signal.SIGKILL)
    assert len(results(tmp_path)) == 2
    again = compare(*command)
    assert again.stderr.count("Measuring the") == 3 and figures(again) == figures(whole)


def test_an_interrupted_run_says_what_is_kept(compare, models, small, tmp_path):
    command = [models["dense"], models["sliced-25"], models["sliced-10"], *small]
    stopped = compare(*command, env={"DYNSLICE_STOP_AFTER": "1:INT"}, expect=130)
    assert stopped.stdout == "" and len(results(tmp_path)) == 1
    assert "interrupted; 1 of 3 measurements are kept: the same command goes on from there" in stopped.stderr.splitlines()[-1]


# --- before the work --------------------------------------------------------------------------------------------


def test_a_dry_run_tells_of_what_is_not_known_yet(compare, models, small, text_file, tmp_path):
    command = [models["dense"], models["sliced-25"], "--ppl", text_file, "--tasks", "piqa", "--prompt-tokens", 16, "--decode-tokens", 4]
    told = compare(*command, "--dry-run", "--json").json()
    assert told["dry_run"] == "compare" and told["time"]["work"]["forward_flops"] > 0
    assert not list((tmp_path / "cache").rglob("*.json"))
    compare(*command[:4], "--tasks", "piqa", "--no-speed")
    less = compare(*command, "--dry-run", "--json").json()
    assert 0 < less["time"]["work"]["forward_flops"] < told["time"]["work"]["forward_flops"]


def test_speed_that_does_not_fit_is_refused_first(compare, models, text_file):
    line = compare(models["dense"], models["sliced-25"], "--ppl", text_file, "--batch", 100000, expect=5).stderr
    assert "--no-speed" in line.splitlines()[-1] and "Measuring" not in line


@pytest.mark.parametrize(("options", "code", "word"), [
    ([], 2, "OTHER"), (["nowhere"], 4, "nowhere"), (["{dense}", "--tasks", "piqua"], 2, "piqa"),
    (["{dense}", "--protocol", "half"], 2, "half"), (["{dense}", "--resamples", "3"], 2, "--resamples"), (["{dense}", "--seqlen", "9999"], 2, "9999")])
def test_wrong_usage_is_one_line(compare, models, options, code, word):
    result = compare(models["dense"], *(option.format(dense=models["dense"]) for option in options), expect=code)
    assert word in result.stderr.splitlines()[-1] and result.stdout == ""
