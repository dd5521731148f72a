"""`dynslice eval --against` beside llama-perplexity --kl-divergence, on a real model and its 4-bit file."""

import re

import pytest

CHUNKS, CONTEXT = 4, 256
# Without weights in the layouts of other kernels, caches or attention in half precision: those round.
EXACT = ["-c", CONTEXT, "-b", CONTEXT, "--chunks", CHUNKS, "-t", 1, "--no-repack", "-ctk", "f32", "-ctv", "f32", "-fa", "off"]


def figures_of(text):
    """"Mean    KLD:   0.012 ±   0.001" and the like: name -> value and error."""
    found = {}
    for line in text.splitlines():
        match = re.match(r"\s*([A-Za-z0-9.%()/Δ -]+?)\s*:\s*(-?[0-9.]+)\s*%?(?:\s*±\s*([0-9.]+))?", line)
        if match:
            found[re.sub(r"\s+", " ", match.group(1))] = (float(match.group(2)), float(match.group(3) or "nan"))
    return found


@pytest.fixture(scope="module")
def models(run, model, tmp_path_factory):
    """The real model with bf16 weights and a version of 4 bits; and both as whole numbers, which llama.cpp computes exactly."""
    folder = tmp_path_factory.mktemp("models")
    run("export", model, "--gguf", "--type", "bf16", "-o", folder / "dense.gguf")
    run("quantize", folder / "dense.gguf", "--gguf", "--bits", "4", "--method", "rtn", "-o", folder / "q4.gguf")
    for name in ("dense", "q4"):
        run("export", folder / f"{name}.gguf", "--gguf", "--type", "f32", "-o", folder / f"{name}-f32.gguf")
    return folder


def run_until(run_command, command, last):
    """The output with that line; its logger's thread may lose the last lines of a short run."""
    for _ in range(20):
        result = run_command(command)
        if last in result.stdout + result.stderr:
            return result.stdout + result.stderr
    pytest.fail(f"llama-perplexity does not say {last}")


@pytest.fixture(scope="module")
def theirs(models, run_command, llama_perplexity, wikitext_start, tmp_path_factory):
    """theirs("q4-f32"): what llama-perplexity says of a file beside the dense model; "base" is that model's perplexity."""
    logits = tmp_path_factory.mktemp("logits") / "base.kld"
    text = wikitext_start
    said = run_until(run_command, [llama_perplexity, "-m", models / "dense-f32.gguf", "-f", text, *EXACT, "--kl-divergence-base", logits], "Final estimate")
    base = re.search(r"Final estimate: PPL = ([0-9.]+) \+/- ([0-9.]+)", said)

    def measure(name):
        command = [llama_perplexity, "-m", models / f"{name}.gguf", *EXACT, "--kl-divergence-base", logits, "--kl-divergence"]
        return {**figures_of(run_until(run_command, command, "Same top p")), "base": (float(base.group(1)), float(base.group(2)))}

    return measure


@pytest.fixture(scope="module")
def ours(run, models, wikitext_start):
    text = wikitext_start
    result = run("eval", models / "q4.gguf", "--against", models / "dense.gguf", "--ppl", text, "--protocol", "llamacpp",
                 "--seqlen", CONTEXT, "--samples", CHUNKS, "--json").json()
    assert result["perplexity"][text.name]["scored_tokens"] == CHUNKS * (CONTEXT // 2 - 1)
    return {"model": result["perplexity"][text.name], **result["divergence"][text.name]}


# llama.cpp keeps the reference's log-probabilities in 16 bits (steps of 0.0002), and none below e^-16 of the largest, so that
# its figures of the reference's own loss are too good. All else is the same to those steps and to its printed digits.
def test_figures_are_llama_cpps(theirs, ours):
    found = theirs("q4-f32")
    for key, name in [("model", "Mean PPL(Q)"), ("perplexity", "base")]:
        assert ours[key]["value"] == pytest.approx(found[name][0], rel=1e-4)
        assert ours[key]["stderr"] == pytest.approx(found[name][1], rel=1e-4)
    kl = ours["kl"]
    assert kl["mean"] == pytest.approx(found["Mean KLD"][0], rel=2e-3)
    assert kl["stderr"] == pytest.approx(found["Mean KLD"][1], rel=2e-3)
    for name, theirs_name in [("p1", "1.0%"), ("p10", "10.0%"), ("p50", "Median"), ("p90", "90.0%"), ("p99", "99.0%"), ("p99.9", "99.9%")]:
        assert kl["quantiles"][name] == pytest.approx(found[f"{theirs_name} KLD"][0], rel=5e-3, abs=1e-4)
    assert kl["maximum"] == pytest.approx(found["Maximum KLD"][0], rel=2e-3)
    change = ours["probability_change"]
    assert [100 * change["mean"], 100 * change["stderr"]] == pytest.approx(list(found["Mean Δp"]), abs=2e-3)
    for name, theirs_name in [("p1", "1.0%"), ("p50", "Median"), ("p95", "95.0%")]:
        assert 100 * change["quantiles"][name] == pytest.approx(found[f"{theirs_name} Δp"][0], abs=2e-2)
    assert [100 * ours["rms_probability_change"][key] for key in ("value", "stderr")] == pytest.approx(list(found["RMS Δp"]), rel=2e-3, abs=1.5e-3)  # three decimals
    assert [100 * ours["same_top"][key] for key in ("value", "stderr")] == pytest.approx(list(found["Same top p"]), abs=0.2)  # a token of 508


# With its own products, of activations that are quantized too, the same file is a slightly other model.
def test_the_quantized_file_is_nearly_as_far_in_llama_cpps_arithmetic(theirs, ours):
    found = theirs("q4")
    assert ours["model"]["value"] == pytest.approx(found["Mean PPL(Q)"][0], rel=0.02)
    assert ours["kl"]["mean"] == pytest.approx(found["Mean KLD"][0], rel=0.15)
    assert ours["kl"]["median"] == pytest.approx(found["Median KLD"][0], rel=0.2)
    assert 100 * ours["rms_probability_change"]["value"] == pytest.approx(found["RMS Δp"][0], rel=0.1)
    assert 100 * ours["same_top"]["value"] == pytest.approx(found["Same top p"][0], abs=3)
