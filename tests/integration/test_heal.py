"""`dynslice heal`, and layers that are trained to replace others, as a user meets them."""

import json

import pytest

TEXT = ["--samples", "20", "--seqlen", "64"]
QUICK = ["--updates", "6", "--batch", "4", "--learning-rate", "0.003"]


@pytest.fixture
def llama(tiny_model):
    return tiny_model("llama", num_hidden_layers=6)


@pytest.fixture
def heal(run, llama, text_file, tmp_path):
    """heal("--rank", 4): the result of healing a tiny model of 6 layers, written to tmp_path/out."""
    return lambda *options, **more: run("heal", llama, "--text", text_file, *TEXT, *QUICK, *options, "-o", tmp_path / "out", **more)


def perplexity(run, folder, text_file):
    """On the windows that were trained on and those held out of training."""
    done = run("eval", folder, "--ppl", text_file, *TEXT, "--json").json()
    return done["perplexity"][text_file.name]["value"]


def test_healing_lowers_the_perplexity_and_says_how(heal, run, llama, text_file, tmp_path):
    shown = heal("--epochs", "4", expect=2)
    assert "--epochs" in shown.stderr and "--updates" in shown.stderr
    done = heal("--json").json()
    points = done["training"]["points"]
    assert points[0]["update"] == 0 and points[-1]["update"] == 6
    assert points[-1]["validation_loss"] < points[0]["validation_loss"]
    assert done["lora"] == {"rank": 8, "alpha": 16, "dropout": 0, "merged": True,
                            "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]}  # fmt: skip
    assert done["parameters"]["before"] == done["parameters"]["after"]
    assert perplexity(run, tmp_path / "out", text_file) < perplexity(run, llama, text_file)
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == json.loads((llama / "config.json").read_text())


def test_what_is_printed_is_a_table_of_perplexities(heal, tmp_path):
    shown = heal().stdout
    assert "perplexity, trained on" in shown and "kept the parameters after update" in shown
    assert f"Next: dynslice eval {tmp_path / 'out'}" in shown


def test_a_sliced_a_merged_and_a_streamlined_model_are_healed(run, llama, text_file, tmp_path):
    calibration = ["--calib", text_file, "--samples", "8", "--seqlen", "64"]
    run("slice", llama, "--avg", "25%", *calibration, "-o", tmp_path / "sliced")
    run("depth", "merge", llama, "--target-layers", 4, *calibration, "-o", tmp_path / "merged")
    run("depth", "streamline", llama, "--layers", 2, "--replace", "linear-stream", *calibration, "-o", tmp_path / "mapped")
    for name in ("sliced", "merged", "mapped"):
        for way in ([], ["--distill", llama]):
            out = tmp_path / ("healed-" + name + "".join(way[:1]))
            done = run("heal", tmp_path / name, "--text", text_file, *TEXT, *QUICK, *way, "-o", out, "--json").json()
            assert done["source_record"]["method"].split()[0] in ("slice", "depth")
            if way:
                assert all(layer["after"] <= layer["before"] for layer in done["training"]["layers"])
            else:
                assert perplexity(run, out, text_file) < perplexity(run, tmp_path / name, text_file)


def test_distillation_needs_the_model_that_was_made_smaller(run, llama, tiny_model, text_file, tmp_path):
    run("depth", "drop", llama, "--indices", "2", "-o", tmp_path / "short")
    other = tiny_model("llama", num_hidden_layers=3)
    failed = run("heal", tmp_path / "short", "--distill", other, "--text", text_file, *TEXT, "-o", tmp_path / "out", expect=2)
    assert "cannot be placed" in failed.stderr and not (tmp_path / "out").exists()


def test_distillation_follows_the_records_to_the_model_that_is_named(run, llama, text_file, tmp_path):
    run("depth", "drop", llama, "--indices", "2", "-o", tmp_path / "five")
    run("depth", "drop", tmp_path / "five", "--indices", "3", "-o", tmp_path / "four")
    for original in (llama, tmp_path / "five"):
        done = run("heal", tmp_path / "four", "--distill", original, "--text", text_file, *TEXT, "--updates", "2", "-o", tmp_path / "out", "--force", "--json").json()
        # Layers 0 and 1 are as they were, and so is their stream.
        assert [layer["before"] < 1e-9 for layer in done["training"]["layers"]][0]
    (tmp_path / "four" / "dynslice.json").write_text('{"method": "depth drop", "layers": {"before": 1e30}}')
    failed = run("heal", tmp_path / "four", "--distill", llama, "--text", text_file, *TEXT, "-o", tmp_path / "x", expect=3)
    assert "plan.layers" in failed.stderr
    (tmp_path / "four" / "dynslice.json").write_text('{"method": 5}')
    failed = run("heal", tmp_path / "four", "--distill", llama, "--text", text_file, *TEXT, "-o", tmp_path / "x", expect=2)
    assert "cannot be placed" in failed.stderr


def test_the_original_is_never_replaced(run, llama, text_file, tmp_path):
    run("depth", "drop", llama, "--indices", "2", "-o", tmp_path / "original")
    run("depth", "drop", tmp_path / "original", "--indices", "2", "-o", tmp_path / "short")
    failed = run("heal", tmp_path / "short", "--distill", tmp_path / "original", "--text", text_file, *TEXT, "-o", tmp_path / "original",
                 "--force", expect=2)  # fmt: skip
    assert "holds the model that is read" in failed.stderr


def test_options_of_a_training_that_is_none_are_refused(run, llama, text_file, tmp_path):
    for options in (["--learning-rate", "1"], ["--loss", "mse"], ["--seed", "3"]):
        failed = run("depth", "streamline", llama, "--layers", 1, *options, "--calib", text_file, *TEXT, "-o", tmp_path / "out", expect=2)
        assert options[0] in failed.stderr and "nothing is trained" in failed.stderr
    for replace in ("none", "ffn"):
        failed = run("depth", "streamline", llama, "--layers", 1, "--replace", replace, "--ridge", "1", "--calib", text_file, *TEXT, "-o", tmp_path / "out", expect=2)
        assert f"--ridge: no map is fitted with --replace {replace}" in failed.stderr


def write_alpaca(path, count=40):
    entries = [{"instruction": f"Say the number {i}", "input": "" if i % 2 else "in words", "output": f"the number is {i}"} for i in range(count)]
    path.write_text(json.dumps(entries) if path.suffix == ".json" else "\n".join(json.dumps(entry) for entry in entries))
    return path


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_instructions_are_learnt(run, llama, tmp_path, suffix):
    file = write_alpaca(tmp_path / f"alpaca.{suffix}")
    done = run("heal", llama, "--instructions", file, *QUICK, "-o", tmp_path / "out", "--json").json()
    points = done["training"]["points"]
    assert points[-1]["validation_loss"] < points[0]["validation_loss"]


@pytest.mark.parametrize(
    "content, words",
    [
        ("{}", ["expected a list"]),
        ("[]", ["no entries"]),
        ('[{"instruction": "a", "output": "b"}, {"instruction": "a"}]', ["entry 1", '"output"']),
        ('[{"instruction": 3, "output": "b"}]', ["entry 0", '"instruction"']),
        ("[3]", ["entry 0", "object"]),
        ("[", ["alpaca.json"]),
    ],
)
def test_broken_instructions_are_one_line(run, llama, tmp_path, content, words):
    (tmp_path / "alpaca.json").write_text(content)
    failed = run("heal", llama, "--instructions", tmp_path / "alpaca.json", "-o", tmp_path / "out", expect=3)
    line = failed.stderr.strip().splitlines()[-1]
    for word in words:
        assert word in line
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    "options, words",
    [
        (["--target-modules", "q_proj,mlp"], ["mlp", "gate_proj"]),
        (["--final-learning-rate", "1"], ["--final-learning-rate 1", "--learning-rate"]),
        (["--adapter", "--out-dtype", "bf16"], ["--adapter", "--out-dtype"]),
        (["--instructions", "x.json", "--shuffle", "1"], ["--instructions", "--shuffle"]),
        (["--target-modules", ","], ["--target-modules"]),
        (["--lora", "--distill", "."], ["--lora", "--distill"]),
        (["--held-out", "20"], ["nothing is left to train on"]),
        (["--seqlen", "4096"], ["--seqlen 4096", "512"]),
        (["--learning-rate", "0"], ["--learning-rate"]),
        (["--rank", "0"], ["--rank"]),
        (["--micro-batch", "9"], ["--micro-batch 9", "--batch", "8"]),
        (["--dtype", "fp16"], ["--dtype fp16", "bf16"]),
        (["--instructions", "x.json", "--distill", "."], ["--instructions", "--distill"]),
    ],
)
def test_wrong_usage_is_one_line_and_leaves_nothing(run, llama, text_file, tmp_path, options, words):
    text = [] if "--instructions" in options else ["--text", text_file, "--samples", "20", *(["--seqlen", "64"] if "--seqlen" not in options else [])]
    failed = run("heal", llama, *text, *options, "-o", tmp_path / "out", expect=2)
    line = failed.stderr.strip().splitlines()[-1]
    assert line.startswith("dynslice: ") and failed.stdout == ""
    for word in words:
        assert word in line
    assert not list(tmp_path.glob("out*"))


def test_dry_run_foretells_and_writes_nothing(heal, llama, tmp_path):
    for way in ([], ["--distill", llama]):
        told = heal(*way, "--dry-run", "--json").json()
        assert told["dry_run"] == "heal" and told["memory"]["bytes"] > 0 and told["disk"]["output_bytes"] > 0
    assert not list(tmp_path.glob("out*"))


def test_neither_threads_nor_micro_batches_change_the_result_beyond_rounding(heal, tmp_path):
    losses = []
    for i, options in enumerate((["--threads", "1"], ["--threads", "2", "--micro-batch", "1"], ["--keep-activations", "streams"])):
        losses.append(heal(*options, "--force", "--json").json()["training"]["points"][-1]["validation_loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4) and losses[2] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.parametrize("replace", ["layer", "ffn", "swiglu"])
@pytest.mark.parametrize("loss", ["mse", "lm"])
def test_replacements_are_trained(run, llama, text_file, tmp_path, replace, loss):
    done = run("depth", "streamline", llama, "--layers", 2, "--replace", replace, "--loss", loss, "--calib", text_file, *TEXT,
               "--updates", "30", "--batch", "4", "--learning-rate", "0.001", "-o", tmp_path / "out", "--json").json()  # fmt: skip
    points = done["training"]["points"]
    assert min(point["validation_loss"] for point in points) < points[0]["validation_loss"]
    assert len(done["removed"]) == 3 and done["layers"] == {"before": 6, "after": 4}
    assert perplexity(run, tmp_path / "out", text_file) > 1
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_type"] == ("llama" if replace == "layer" else "dynslice")


def test_a_model_with_an_mlp_alone_is_not_sliced(run, llama, text_file, tmp_path):
    run("depth", "streamline", llama, "--layers", 2, "--replace", "swiglu", "--window", "2", "--calib", text_file, *TEXT, *QUICK, "-o", tmp_path / "out")
    failed = run("slice", tmp_path / "out", "--avg", "25%", "--calib", text_file, *TEXT, "-o", tmp_path / "sliced", expect=2)
    assert "an MLP alone" in failed.stderr and not (tmp_path / "sliced").exists()
    for verb in (["merge", "--target-layers", 3], ["streamline", "--layers", 1, "--replace", "layer"]):
        failed = run("depth", *verb, tmp_path / "out", "--calib", text_file, *TEXT, "-o", tmp_path / "more", expect=2)
        assert "an MLP alone" in failed.stderr
    run("depth", "drop", tmp_path / "out", "--indices", "1", "-o", tmp_path / "dropped")  # the MLP alone
    assert perplexity(run, tmp_path / "dropped", text_file) > 1
    failed = run("depth", "streamline", llama, "--layers", 2, "--replace", "ffn", "--window", "1", "--calib", text_file, *TEXT, "-o", tmp_path / "x", expect=2)
    assert "--window 1" in failed.stderr and "2 to 4" in failed.stderr


@pytest.mark.parametrize(
    "command, stops, kills",
    [
        (["heal"], ("7", "8:data", "8:state"), 5),
        (["heal", "--distill"], ("2", "3:data", "3:state"), 2),
        # A run that resumes while windows are tried fits the repairs of all windows again.
        (["depth", "streamline", "--layers", "2", "--replace", "layer"], ("repairs of all windows:3", "training:7", "training:8:state", "999"), 3),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_killed_runs_go_on_to_the_same_bytes(kill_and_resume, run, tiny_model, text_file, tmp_path, command, stops, kills):
    model = tiny_model("llama", num_hidden_layers=6)
    verb = command[:2] if command[0] == "depth" else command[:1]
    options = [*command[len(verb):], *([model] if command[-1] == "--distill" else [])]
    text = ["--calib" if verb[0] == "depth" else "--text", text_file, "--samples", "60", "--seqlen", "256"]
    call = [*verb, model, *options, *text, "--updates", "6" if "--distill" in options else "40", "--batch", "4"]
    run(*call, "-o", tmp_path / "whole")
    killed = kill_and_resume([*call, "-o", tmp_path / "killed"], stops=stops)
    assert killed.kills == kills, killed.places
    assert (tmp_path / "killed" / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()


def test_two_runs_give_the_same_bytes(heal, tmp_path):
    heal("--dropout", "0.2")
    first = (tmp_path / "out" / "model.safetensors").read_bytes()
    heal("--dropout", "0.2", "--force")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == first
