"""dynslice bench of several models in turns."""
import pytest

OPTIONS = ["--prompt-tokens", 24, "--decode-tokens", 6, "--repeats", 2, "--batch", 2]


@pytest.fixture(scope="module")
def models(tiny_model):
    return [tiny_model("llama"), tiny_model("llama", num_hidden_layers=2), tiny_model("mistral", dtype="bfloat16")]


def check(result):
    for phase, counted in (("prefill", 24), ("decode", 6)):
        seconds = result[phase]["seconds"]
        assert len(seconds) == 2 and min(seconds) > 0
        assert result[phase]["tokens_per_second"] == pytest.approx(2 * counted / (sum(seconds) / 2))  # the median of two
    latency = result["decode"]["latency_seconds"]
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p95"] <= latency["p99"]


def test_bench_measures_any_number_of_models_in_one_run(run, models):
    result = run("bench", *models, *OPTIONS, "--json").json()
    assert [one["model"] for one in result["models"]] == [str(folder) for folder in models]
    for one in result["models"]:
        check(one)
        assert "ratio" not in one
    dense, shallow, other = result["models"]
    assert dense["weight_bytes"] == dense["parameters"] * 4 == dense["disk_bytes"]
    assert shallow["weight_bytes"] < dense["weight_bytes"] and shallow["cache_bytes"] * 2 == dense["cache_bytes"]
    assert other["disk_bytes"] * 2 == other["weight_bytes"]  # stored in bf16, in memory as fp32
    assert "model" not in result and "against" not in result
    assert result["repeats"] == 2 and result["batch"] == 2 and result["peak_rss_bytes"] > sum(
        one["weight_bytes"] + one["cache_bytes"] for one in result["models"])


def test_against_is_apart_from_several_models(run, models):
    result = run("bench", *models[1:], "--against", models[0], *OPTIONS, "--json").json()
    assert len(result["models"]) == 2 and result["against"]["model"] == str(models[0])
    check(result["against"])
    for one in result["models"]:
        for phase in ("prefill", "decode"):
            expected = one[phase]["tokens_per_second"] / result["against"][phase]["tokens_per_second"]
            assert one["ratio"][phase] == pytest.approx(expected)


def test_the_table_has_a_row_for_every_model(run, models):
    lines = run("bench", *models, *OPTIONS).stdout.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == [str(folder) for folder in models]
    for column in ("prefill tokens/s", "decode tokens/s", "p50 ms", "p95 ms", "on disk", "weights", "cache"):
        assert column in lines[0]
    assert "with all models" in lines[-1] and "Ratio" not in "".join(lines)
    lines = run("bench", *models[1:], "--against", models[0], *OPTIONS).stdout.splitlines()
    assert sum(line.startswith("Ratio of ") and line.count(str(models[0])) == 1 for line in lines) == 2


def test_one_model_keeps_its_keys_at_the_top(run, models):
    result = run("bench", models[0], *OPTIONS, "--json").json()
    check(result)
    assert result["model"] == str(models[0]) and "models" not in result and "against" not in result


def test_models_that_do_not_fit_together_are_refused_before_any_is_loaded(run, models):
    """Caches of 50 TB."""
    options = ["--batch", 100_000_000, "--prompt-tokens", 400, "--decode-tokens", 0, "--json"]
    result = run("bench", *models, *options, expect=5)
    assert "others weights" in result.stderr and "others cache" in result.stderr
    assert "the 3 models are in memory together: measure fewer at a time" in result.stderr
    assert result.stdout == "" and "Loading" not in result.stderr


def test_a_dry_run_counts_all_models(run, models):
    parts = run("bench", *models, "--against", models[0], "--dry-run", "--json").json()["memory"]["parts"]
    one, other = (run("bench", folder, "--dry-run", "--json").json()["memory"]["parts"] for folder in models[:2])
    assert parts["weights"] == parts["against_weights"] == one["weights"]
    assert parts["others_weights"] > other["weights"] and parts["others_cache"] > other["cache"]
