"""`dynslice quantize` as a user meets it: what it prints and writes, how it fails, and how it goes on after a kill."""

import json
import math
import resource
import shutil

import pytest

CALIBRATION = ["--samples", "4", "--seqlen", "64"]


@pytest.fixture
def llama(tiny_model):
    return tiny_model("llama", num_hidden_layers=6)


@pytest.fixture
def quantize(run, llama, text_file, tmp_path):
    """quantize("--bits", "8,4"): the result of the verb on a tiny model of 6 layers, written to tmp_path/out."""

    def call(*options, text=True, out="out", **more):
        calibration = ["--calib", text_file, *CALIBRATION] if text else []
        return run("quantize", llama, *options, *calibration, "-o", tmp_path / out, **more)

    return call


def perplexity(run, folder, text_file):
    measured = run("eval", folder, "--ppl", text_file, *CALIBRATION, "--json").json()["perplexity"]
    return measured[text_file.name]["value"]


def test_the_least_important_layers_take_the_lower_bits(quantize, run, llama, text_file):
    done = quantize("--bits", "8,4", "--low-share", "50%", "--json").json()
    lim = run("score", llama, "--metric", "lim", "--calib", text_file, *CALIBRATION, "--json").json()["values"]
    low = {layer for layer, bits in enumerate(done["plan"]["bits"]) if bits == 4}
    assert low == set(sorted(range(6), key=lambda layer: lim[layer])[:3])
    assert done["average_bits"]["codes"] == 6
    assert done["average_bits"]["with_scales"] > 6


def test_an_average_decides_how_many(quantize):
    done = quantize("--bits", "8,4", "--avg-bits", "5", "--order", "zd", "--method", "rtn", "--json", text=False).json()
    assert sorted(done["plan"]["bits"]) == [4, 4, 4, 4, 4, 8]
    assert done["average_bits"]["codes"] <= 5


@pytest.mark.parametrize("order", ["random", "zd"])
def test_rounding_needs_no_text_where_the_order_needs_none(quantize, order):
    done = quantize("--bits", "8,4,2", "--order", order, "--method", "rtn", "--json", text=False).json()
    assert sorted(done["plan"]["bits"]) == [2, 2, 4, 4, 8, 8]
    assert "calibration" not in done


def test_a_search_measures_what_every_layer_costs(quantize, tmp_path):
    done = quantize("--bits", "8,2", "--avg-bits", "5", "--order", "search", "--search-samples", "2", "--search-rounds", "2",
                    "--json").json()
    assert sorted(done["plan"]["bits"]) == [2, 2, 2, 8, 8, 8]
    assert len(done["plan"]["provenance"]["steps"]) == 3


def test_a_plan_can_be_edited_and_given_back(quantize, tmp_path):
    plan = quantize("--bits", "8,4", "--method", "rtn", "--order", "zd", "--json", text=False).json()["plan"]
    plan["bits"] = [8, 7, 6, 5, 4, 3]
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(plan))
    done = quantize("--plan", file, "--method", "rtn", "--json", text=False, out="again").json()
    assert done["plan"]["bits"] == plan["bits"]
    plan["bits"] = [8, 8]
    file.write_text(json.dumps(plan))
    refused = quantize("--plan", file, "--method", "rtn", text=False, out="never", expect=3)
    assert "2 layers" in refused.stderr and "6" in refused.stderr


def test_eval_runs_packed_and_whole_values_alike(quantize, run, text_file, tmp_path):
    for bits in ["8", "4", "3", "2"]:
        quantize("--bits", bits, "--out-dtype", "fp32", out=f"packed-{bits}")
        quantize("--bits", bits, "--out-dtype", "fp32", "--fake-quant", out=f"whole-{bits}")
        packed, whole = (perplexity(run, tmp_path / f"{kind}-{bits}", text_file) for kind in ("packed", "whole"))
        assert packed == pytest.approx(whole, rel=1e-5)


def test_fewer_bits_take_less_room(quantize):
    sizes = [quantize("--bits", bits, "--method", "rtn", "--json", text=False, out=bits).json()["bytes"]["after"] for bits in "8642"]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 4


def test_what_it_prints(quantize):
    shown = quantize("--bits", "8,4", "--group-size", "32").stdout
    for words in ["bits", "which", "Bits a weight: 6.00", "before", "after", "Next: dynslice eval"]:
        assert words in shown, shown


def test_the_record_tells_what_was_done(quantize, tmp_path):
    quantize("--bits", "8,4")
    record = json.loads((tmp_path / "out" / "dynslice.json").read_text())
    assert record["method"] == "quantize gptq" and record["format"] == "pack-quantized"
    assert record["scores"]["metric"] == "lim" and record["calibration"]["windows"] == 4
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    assert len(config["quantization_config"]["config_groups"]) == 2


@pytest.mark.parametrize("options, words", [
    (["--bits", "9"], "2 to 8"),
    (["--bits", "4,8"], "fall"),
    (["--bits", "8,x"], "--bits"),
    (["--bits", "8,4", "--avg-bits", "3"], "between 4 and 8"),
    (["--bits", "8", "--low-share", "50%"], "two levels"),
    (["--bits", "8,4", "--low-share", "20%,20%"], "--low-share"),
    (["--bits", "8,4,2", "--low-share", "80%,40%"], "100%"),
    (["--bits", "8,4", "--order", "nonsense"], "nonsense"),
    (["--bits", "8,4", "--order", "window:2"], "window:2"),
    (["--group-size", "128"], "do not divide"),
    (["--group-size", "5"], "--group-size"),
    (["--plan", "nowhere.json"], "nowhere.json"),
    (["--sweep", "x.json", "--bits", "8,4"], "--sweep"),  # and -o: a sweep writes no checkpoint
    (["--types", "q4_0"], "--gguf"),
    (["--gguf", "--bits", "7"], "7 bits"),
    (["--gguf", "--bits", "8,4", "--types", "q8_0"], "--types"),
    (["--gguf", "--types", "q9_9"], "q9_9"),
    (["--method", "rtn", "--damping", "0.1"], "--damping: belongs to --method gptq"),
    (["--method", "rtn", "--natural-order"], "--natural-order: belongs to --method gptq"),
    (["--ppl", "wikitext2"], "--sweep"),
    (["--ppl-samples", "2"], "--sweep"),
])
def test_what_cannot_be_is_refused_in_a_line(quantize, tmp_path, options, words):
    refused = quantize(*options, expect=None)
    assert refused.code in (2, 3, 4)
    assert words in refused.stderr and len(refused.stderr.strip().splitlines()) == 1, refused.stderr
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


def test_nan_in_a_weight_is_refused(run, llama, text_file, tmp_path):
    from safetensors.torch import load_file, save_file

    damaged = shutil.copytree(llama, tmp_path / "damaged")
    weights = load_file(damaged / "model.safetensors")
    weights["model.layers.3.mlp.up_proj.weight"][2, 3] = math.nan
    save_file(weights, damaged / "model.safetensors", metadata={"format": "pt"})
    for method in ("gptq", "rtn"):
        refused = run("quantize", damaged, "--method", method, "--calib", text_file, *CALIBRATION, "-o", tmp_path / method, expect=3)
        assert "layers.3.mlp.up_proj" in refused.stderr and not (tmp_path / method).exists()


def test_a_dry_run_says_what_it_would_take(quantize, tmp_path):
    estimate = quantize("--bits", "8,4", "--dry-run", "--json").json()
    assert estimate["dry_run"] == "quantize"
    assert estimate["memory"]["bytes"] > 0 and estimate["disk"]["output_bytes"] > 0
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [["--bits", "8,4"], ["--bits", "4", "--method", "rtn"],
                                     ["--bits", "8,2", "--order", "search", "--search-samples", "2"]])
def test_killed_again_and_again_it_leaves_the_same_bytes(kill_and_resume, run, llama, text_file, tmp_path, options):
    text = ["--calib", text_file, *CALIBRATION]
    run("quantize", llama, *options, *text, "-o", tmp_path / "whole")
    killed = kill_and_resume(["quantize", llama, *options, *text, "-o", tmp_path / "killed"])
    assert killed.kills >= 5
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_gguf_file_survives_kills_too(kill_and_resume, run, llama, text_file, tmp_path):
    command = ["quantize", llama, "--gguf", "--bits", "8,4", "--calib", text_file, *CALIBRATION]
    run(*command, "-o", tmp_path / "whole.gguf")
    killed = kill_and_resume([*command, "-o", tmp_path / "killed.gguf"])
    assert killed.kills >= 5
    whole, killed = (run("inspect", tmp_path / f"{name}.gguf", "--json").json() for name in ("whole", "killed"))
    assert killed["bytes_by_dtype"] == whole["bytes_by_dtype"]
    assert perplexity(run, tmp_path / "killed.gguf", text_file) == perplexity(run, tmp_path / "whole.gguf", text_file)
    assert not list(tmp_path.glob("killed.gguf.*"))


def test_a_gguf_file_is_written_by_the_next_run_when_the_disk_was_full(run, llama, text_file, tmp_path):
    command = ["quantize", llama, "--gguf", "--bits", "8,4", "--calib", text_file, *CALIBRATION]
    run(*command, "-o", tmp_path / "whole.gguf")
    size = (tmp_path / "whole.gguf").stat().st_size
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1000, size - 1000))  # the blocks alone are smaller
    out = tmp_path / "out.gguf"
    stopped = run(*command, "-o", out, expect=5, preexec_fn=limit)
    assert "--resume" in stopped.stderr.splitlines()[-1] and (tmp_path / "out.gguf.blocks").exists() and not out.exists()
    again = run(*command, "-o", out, expect=2)
    assert "--resume" in again.stderr and "out.gguf.blocks" in again.stderr
    resumed = run(*command, "-o", out, "--resume")
    assert "Quantizing" not in resumed.stderr and not (tmp_path / "out.gguf.blocks").exists()
    assert perplexity(run, out, text_file) == perplexity(run, tmp_path / "whole.gguf", text_file)
    before = out.read_bytes()
    done = run(*command, "-o", out, "--resume", "-v")
    assert "nothing is left to do" in done.stderr and out.read_bytes() == before
    assert "exists" in run(*command, "-o", out, expect=2).stderr


def test_eight_bits_by_name_are_not_eight_bits(run, llama, text_file, tmp_path):
    """Whether gptq has something to gain is decided by the codes that a type has, not by what its level is called."""
    text = ["--calib", text_file, *CALIBRATION, "--gguf", "--bits", "8", "--types", "Q4_0"]
    run("quantize", llama, *text, "-o", tmp_path / "gptq.gguf")
    run("quantize", llama, *text, "--method", "rtn", "-o", tmp_path / "rtn.gguf")
    assert perplexity(run, tmp_path / "gptq.gguf", text_file) != perplexity(run, tmp_path / "rtn.gguf", text_file)


def test_a_recipe_quantizes_what_a_step_before_made(run, llama, text_file, tmp_path):
    recipe = {"recipe": 1, "steps": [{"verb": "slice", "avg": "25%", "calib": str(text_file), "samples": 4, "seqlen": 64},
                        {"verb": "quantize", "bits": "8,4", "order": "zd", "calib": str(text_file), "samples": 4, "seqlen": 64}]}
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(recipe))
    run("run", file, llama, "-o", tmp_path / "out")
    record = json.loads((tmp_path / "out" / "dynslice.json").read_text())
    assert [step["method"] for step in record["steps"]] == ["slice", "quantize gptq"]
    assert perplexity(run, tmp_path / "out", text_file) > 1
    recipe["steps"][1]["gguf"] = True
    file.write_text(json.dumps(recipe))
    assert '"gguf"' in run("run", file, llama, "-o", tmp_path / "never", expect=3).stderr


def test_spilled_streams_give_the_same_codes(quantize, tmp_path):
    quantize("--bits", "4", out="memory")
    quantize("--bits", "4", "--activation-memory", "1", "--scratch-dir", tmp_path, out="spilled")
    assert (tmp_path / "spilled" / "model.safetensors").read_bytes() == (tmp_path / "memory" / "model.safetensors").read_bytes()


def test_threads_agree(quantize, run, text_file, tmp_path):
    quantize("--bits", "3", "--threads", "1", out="one")
    quantize("--bits", "3", "--threads", "2", out="two")
    one, two = (perplexity(run, tmp_path / name, text_file) for name in ("one", "two"))
    assert one == pytest.approx(two, rel=0.02)


def test_a_sweep_measures_every_order(run, llama, text_file, tmp_path):
    file = tmp_path / "sweep.json"
    done = run("quantize", llama, "--bits", "8,2", "--method", "rtn", "--sweep", file, "--calib", text_file, *CALIBRATION,
               "--ppl", text_file, "--ppl-samples", "3", "--json").json()
    assert [curve["order"] for curve in done["curves"]] == ["lim", "zd", "random", "random", "random", "reverse"]
    firsts, lasts = ({round(curve["perplexity"][place], 6) for curve in done["curves"]} for place in (0, -1))
    assert len(firsts) == len(lasts) == 1  # no layer is low, or all are: the order does not matter
    assert json.loads(file.read_text())["curves"] == done["curves"]
    picture = file.with_suffix(".svg").read_text()
    assert picture.count("<title>") == 6 * 11
    # A point is what eval measures on the checkpoint that the same plan makes.
    run("quantize", llama, "--bits", "2", "--method", "rtn", "--fake-quant", "--out-dtype", "fp32", "-o", tmp_path / "all-low")
    low = run("eval", tmp_path / "all-low", "--ppl", text_file, "--samples", "3", "--seqlen", "64", "--json").json()
    assert lasts.pop() == pytest.approx(low["perplexity"][text_file.name]["value"], rel=0.01)


def test_a_sweep_asks_questions(run, llama, text_file, tmp_path):
    words = ("river", "house", "army", "city", "song", "team")
    questions = [{"goal": f"the {words[i % 6]} {i} was in the", "sol1": words[i // 6], "sol2": words[(i // 6 + 1 + i % 5) % 6], "label": i % 2}
                 for i in range(30)]
    (tmp_path / "piqa").mkdir()
    (tmp_path / "piqa/validation.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    file, tasks = tmp_path / "sweep.json", ["--tasks", "piqa", "--limit", "25", "--data-dir", tmp_path]
    done = run("quantize", llama, "--bits", "8,2", "--method", "rtn", "--sweep", file, "--calib", text_file, *CALIBRATION,
               "--ppl", text_file, "--ppl-samples", "1", *tasks, "--json").json()
    for place, bits in ((0, "8"), (-1, "2")):
        run("quantize", llama, "--bits", bits, "--method", "rtn", "--fake-quant", "--out-dtype", "fp32", "-o", tmp_path / bits)
        alone = run("eval", tmp_path / bits, *tasks, "--json").json()["tasks"]["piqa"]
        assert alone["n"] == 25
        # Scales are in the dtype of the output: an answer may tip over.
        for curve in done["curves"]:
            assert curve["accuracy"]["piqa"][place] == pytest.approx(alone["acc"], abs=1.01 / 25)
    assert all(len(curve["accuracy"]["piqa"]) == 11 for curve in done["curves"])
    assert (tmp_path / "sweep.piqa.svg").read_text().count("<title>") == 6 * 11
    text = run("quantize", llama, "--bits", "8,2", "--method", "rtn", "--sweep", file, "--calib", text_file, *CALIBRATION, "--ppl", text_file,
               "--ppl-samples", "1", *tasks).stdout
    assert "Accuracy, piqa, %" in text


def test_sliced_and_shallower_models_are_quantized_too(run, llama, text_file, tmp_path):
    text = ["--calib", text_file, *CALIBRATION]
    run("slice", llama, "--avg", "25%", *text, "-o", tmp_path / "sliced")
    run("depth", "streamline", llama, "--layers", "2", *text, "-o", tmp_path / "shallow")
    run("depth", "streamline", llama, "--layers", "2", "--replace", "swiglu", "--updates", "1", *text, "-o", tmp_path / "swiglu")
    for source in ("sliced", "shallow", "swiglu"):
        run("quantize", tmp_path / source, "--bits", "5", *text, "-o", tmp_path / f"{source}-5")
        before, after = (perplexity(run, tmp_path / name, text_file) for name in (source, f"{source}-5"))
        assert after == pytest.approx(before, rel=0.05)
    run("quantize", tmp_path / "swiglu", "--bits", "8,5", "--order", "search", "--search-samples", "1", *text, "-o", tmp_path / "searched")
