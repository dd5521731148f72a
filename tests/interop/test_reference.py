"""Figures of the published methods on the real model, and llama.cpp on the same file."""

import json
import re
import subprocess

import numpy as np

HALF = 152_493  # of wikitext-2 test's 304,986 tokens: the first half calibrates, the second is evaluated


def test_constant_slicing_reproduces_the_published_perplexity(run, tmp_path, model):
    out = tmp_path / "sliced"
    sliced = json.loads(run("slice", model, "--avg", "25%", "--allocate", "constant", "--calib", "wikitext2:test", "--calib-range", f"0:{HALF}",
                            "--samples", "12", "--seqlen", "512", "--round-to", "8", "--out-dtype", "fp32", "-o", out, "--json").stdout)
    assert sliced["plan"]["dims"] == [432] * 30
    result = run("eval", out, "--ppl", "wikitext2", "--ppl-range", f"{HALF}:{HALF + 6144}", "--seqlen", "512", "--json")
    ours = json.loads(result.stdout)["perplexity"]["wikitext2"]
    assert ours["windows"] == 12
    # What tools/bench_slicegpt.py --samples 12 --seqlen 512 --eval-samples 12 says of the published Python SliceGPT. With
    # 32 windows of 1024 they are 67.2 and 67.42; less text leaves the last directions less certain.
    assert abs(ours["value"] / 121.80 - 1) < 0.015


def dynamic_slicing_dimensions(importances, mean, amount, hidden_size):
    """The authors' scripts: normalisation of calculate_LR.py, then mean_cut_accuracy_experiments.py and rotate.py.

    `importances` are summed block influences; what the first script prints as the cut vector goes into the second.
    """
    low, high = min(importances), max(importances)
    vector_cut = [1 - (value - low) / (high - low) for value in importances]
    values = [1.0 - value for value in vector_cut]
    highest = max(values)
    values = [highest - value for value in values]
    low, high = min(values), max(values)
    values = [(value - low) / (high - low) for value in values]
    average = np.mean(values)
    values = [value * amount / average + (mean - amount) for value in values]
    dimensions = 1 - np.array(values)
    return np.round(dimensions * hidden_size).astype(int).tolist()


def test_the_paper_preset_gives_dynamic_slicings_dimensions(run, tmp_path, model):
    scores = tmp_path / "scores.json"
    run("score", model, "--calib", "wikitext2:test", "--samples", "4", "--seqlen", "512", "--preset", "paper", "-o", scores)
    values = json.loads(scores.read_text())["values"]
    for mean in (0.25, 0.3, 0.4):
        for amount in (0.02, 0.1, 0.2):
            plan = run("plan", model, "--avg", str(mean), "--base", str(mean - amount), "--preset", "paper", "--scores", scores, "--json")
            ours = json.loads(plan.stdout)["plan"]["dims"]
            assert ours == dynamic_slicing_dimensions([1 - value for value in values], mean, amount, 576), (mean, amount)


def test_the_llamacpp_protocol_agrees_with_llama_perplexity(run, model, wikitext_start, llama_perplexity):
    text = wikitext_start
    chunks, context = 2, 512
    output = subprocess.run([llama_perplexity, "-m", model, "-f", text, "-c", str(context), "-b", str(context), "--chunks", str(chunks), "-t", "1", "--no-repack"],
                            check=True, capture_output=True, text=True)
    theirs = float(re.search(r"Final estimate: PPL = ([0-9.]+)", output.stdout + output.stderr).group(1))
    result = run("eval", model, "--ppl", text, "--protocol", "llamacpp", "--samples", str(chunks), "--seqlen", str(context), "--json")
    ours = json.loads(result.stdout)["perplexity"][wikitext_start.name]
    assert ours["scored_tokens"] == chunks * (context // 2 - 1)
    assert abs(ours["value"] / theirs - 1) < 0.01
