"""`dynslice run` as a user meets it: what the steps give together, what the record tells, how it fails and goes on."""

import json
import os
import pathlib
import re
import signal
import subprocess

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
TEXT = ["--samples", "4", "--seqlen", "64"]


@pytest.fixture
def llama(tiny_model):
    return tiny_model("llama", num_hidden_layers=6)


def step(verb, text, **options):
    """A step that calibrates, or measures, on a little of the text."""
    where = "ppl" if verb == "eval" else "calib"
    return {"verb": verb, where: str(text), "samples": 4, "seqlen": 64, **options}


def write(path, *steps, **more):
    path.write_text(json.dumps({"recipe": 1, "steps": list(steps), **more}))
    return path


@pytest.fixture
def both(text_file, tmp_path):
    """Merge, measure, slice, measure."""
    return write(tmp_path / "both.json", step("depth merge", text_file, **{"target-layers": 4}), step("eval", text_file),
                 step("slice", text_file, avg="25%", allocate="constant"), step("eval", text_file),
                 description="a bit of both")  # fmt: skip


def last_line(result):
    line = result.stderr.splitlines()[-1]
    assert line.startswith("dynslice: "), result.stderr
    return line


# --- what it makes ----------------------------------------------------------------------------------------------


def test_two_steps_write_the_bytes_of_the_two_commands_by_hand(run, llama, both, text_file, tmp_path):
    run("run", both, llama, "-o", tmp_path / "out")
    run("depth", "merge", llama, "--target-layers", 4, "--calib", text_file, *TEXT, "-o", tmp_path / "merged")
    run("slice", tmp_path / "merged", "--avg", "25%", "--allocate", "constant", "--calib", text_file, *TEXT, "-o", tmp_path / "hand")
    for name in ("model.safetensors", "config.json", "tokenizer.json", "modeling_dynslice.py"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "hand" / name).read_bytes(), name
    assert not (tmp_path / "out.steps").exists() and not (tmp_path / "out.partial").exists()


def test_the_record_tells_every_step_and_the_change_since_the_original(run, llama, both, tmp_path):
    run("run", both, llama, "-o", tmp_path / "out")
    record = json.loads((tmp_path / "out" / "dynslice.json").read_text())
    merged, sliced = record["steps"]
    assert merged["method"] == "depth merge" and sliced["method"] == "slice"
    assert "--target-layers" in merged["command_line"] and "--avg" in sliced["command_line"]
    assert merged["model"] == str(llama) and sliced["model"] == str(tmp_path / "out.steps" / "1-depth-merge")
    assert merged["layers"] == {"before": 6, "after": 4}
    assert merged["parameters"]["after"] == sliced["parameters"]["before"]
    whole = record["since_original"]
    assert whole["model"] == str(llama) and whole["layers"] == merged["layers"]
    for size in ("parameters", "bytes", "flops_per_token"):
        assert whole[size]["before"] == merged[size]["before"] and whole[size]["after"] == sliced[size]["after"]
        assert record[size] == sliced[size]
    # All of it, plans and hashes included, is there as well, in the place of honour for long things: the end.
    assert list(record)[-1] == "source_record"
    assert record["source_record"]["plan"]["layers"] and record["source_record"]["source"]["model.safetensors"]
    assert record["plan"]["dims"] == [48] * 4
    told = record["run"]["recipe"]
    assert told["file"] == str(both) and told["description"] == "a bit of both" and (told["step"], told["steps"]) == (3, 4)
    assert told["command_line"][1:3] == ["run", str(both)]


def test_commands_by_hand_tell_the_same_story(run, llama, text_file, tmp_path):
    run("depth", "drop", llama, "--indices", "1", "-o", tmp_path / "one")
    run("depth", "drop", tmp_path / "one", "--indices", "1", "-o", tmp_path / "two")
    shown = run("slice", tmp_path / "two", "--avg", "25%", "--allocate", "constant", "--calib", text_file, *TEXT,
                "-o", tmp_path / "three", "--json").json()  # fmt: skip
    assert "steps" not in json.loads((tmp_path / "one" / "dynslice.json").read_text())
    assert [one["method"] for one in shown["steps"]] == ["depth drop", "depth drop", "slice"]
    assert shown["since_original"]["layers"] == {"before": 6, "after": 4}
    assert "steps" not in shown["source_record"] and shown["source_record"]["source_record"]["removed"] == [1]


def test_json_collects_the_results_of_all_steps(run, llama, both, text_file, tmp_path):
    done = run("run", both, llama, "-o", tmp_path / "out", "--json").json()
    assert [one["verb"] for one in done["steps"]] == ["depth merge", "eval", "slice", "eval"]
    merged, of_merged, sliced, of_sliced = (one["result"] for one in done["steps"])
    assert merged["plan"]["layers"] and sliced["plan"]["dims"] and "source_record" not in sliced
    measured = run("eval", tmp_path / "out", "--ppl", text_file, *TEXT, "--json").json()["perplexity"]
    assert of_sliced["perplexity"] == measured != of_merged["perplexity"]
    assert done["description"] == "a bit of both" and done["output"] == str(tmp_path / "out") and done["model"] == str(llama)
    assert done["parameters"] == {"before": merged["parameters"]["before"], "after": sliced["parameters"]["after"]}
    assert done["layers"] == {"before": 6, "after": 4} and done["wall_seconds"] > 0 and done["peak_rss_bytes"] > 0


def test_a_person_sees_the_steps_and_a_table_of_sizes(run, llama, both, tmp_path):
    shown = run("run", both, llama, "-o", tmp_path / "out").stdout
    headings = re.findall(r"^== (step \d of 4 \(.*?\)): dynslice|^== (.*?): ", shown, re.MULTILINE)
    assert [a or b for a, b in headings] == [f"step {i} of 4 ({verb})" for i, verb in enumerate(["depth merge", "eval", "slice", "eval"], 1)]
    assert shown.count("perplexity") >= 2 and "after depth merge" in shown and "after slice" in shown
    assert shown.count("Next:") == 1 and shown.endswith(f"dynslice eval {tmp_path / 'out'} --ppl wikitext2\n")


def test_keep_steps_leaves_the_checkpoints_between(run, llama, both, text_file, tmp_path):
    run("run", both, llama, "-o", tmp_path / "out", "--keep-steps")
    assert [path.name for path in (tmp_path / "out.steps").iterdir()] == ["1-depth-merge"]
    run("eval", tmp_path / "out.steps" / "1-depth-merge", "--ppl", text_file, *TEXT)
    again = run("run", both, llama, "-o", tmp_path / "out", "--keep-steps", "--resume")
    assert "was finished by the run before" in again.stderr


def test_options_of_the_command_line_go_to_all_steps_that_have_them(run, llama, text_file, tmp_path):
    recipe = write(tmp_path / "r.json", step("eval", text_file, threads=2), {"verb": "inspect"})
    first, second = run("run", recipe, llama, "--threads", 1, "--dtype", "bf16", "--json").json()["steps"]
    assert first["command_line"].count("--threads") == 1
    assert first["result"]["provenance"]["threads"] == 1 and first["result"]["provenance"]["dtype"] == "bf16"
    assert second["command_line"][1:] == ["inspect", str(llama)] and second["result"]["layers"] == 6


def test_the_log_file_of_a_recipe_has_the_messages_of_its_steps(run, llama, both, text_file, tmp_path):
    log_file = tmp_path / "run.log"
    run("run", both, llama, "-o", tmp_path / "out", "--log-file", log_file)
    assert log_file.read_text().count(f"{text_file}: ") == 4  # of the debug level: how many tokens each step's text has
    recipe = write(tmp_path / "bad.json", step("eval", text_file, **{"log-file": "a.log"}))
    assert "belongs to `dynslice run`" in last_line(run("run", recipe, llama, expect=3))


def test_threads_of_one_step_are_not_those_of_the_next(run, llama, text_file, tmp_path):
    recipe = write(tmp_path / "r.json", step("eval", text_file, threads=1), step("eval", text_file))
    first, second = (one["result"]["provenance"]["threads"] for one in run("run", recipe, llama, "--json").json()["steps"])
    assert first == 1 and second == json.loads(run("eval", llama, "--ppl", text_file, *TEXT, "--json").stdout)["provenance"]["threads"]


def test_a_recipe_names_its_model_and_output_has_a_default_name(run, llama, text_file, tmp_path):
    recipe = write(tmp_path / "small.json", {"verb": "depth drop", "indices": "1,3"}, model=str(llama))
    run("run", recipe, cwd=tmp_path)
    assert json.loads((tmp_path / f"{llama.name}-small" / "config.json").read_text())["num_hidden_layers"] == 4


def test_model_stands_for_the_model_that_the_recipe_begins_with(run, llama, tmp_path):
    recipe = write(tmp_path / "r.json", {"verb": "depth drop", "indices": "1"}, {"verb": "bench", "against": "MODEL"})
    assert "--against MODEL" in run("run", recipe, llama, "--check").stdout
    shown = run("run", recipe, llama, "-o", tmp_path / "out", "--dry-run").stdout
    assert f"bench {tmp_path / 'out'} --against {llama}\n" in shown


def test_a_model_is_merged_sliced_and_healed_by_one_command(run, llama, text_file, tmp_path):
    heal = {"verb": "heal", "text": str(text_file), "samples": 12, "seqlen": 64, "updates": 4, "learning-rate": 0.003}
    recipe = write(tmp_path / "heal.json", step("depth merge", text_file, **{"target-layers": 4}),
                   step("slice", text_file, avg="25%", allocate="constant"), {**heal, "distill": "MODEL"}, heal, step("eval", text_file))  # fmt: skip
    run("run", recipe, llama, "-o", tmp_path / "out")
    record = json.loads((tmp_path / "out" / "dynslice.json").read_text())
    assert [one["method"] for one in record["steps"]] == ["depth merge", "slice", "heal distill", "heal lora"]
    assert record["since_original"]["layers"] == {"before": 6, "after": 4}
    assert record["training"]["points"][-1]["validation_loss"] < record["training"]["points"][0]["validation_loss"]


def test_an_adapter_is_the_last_thing_that_a_recipe_makes(run, llama, text_file, tmp_path):
    recipe = write(tmp_path / "adapter.json", {"verb": "heal", "text": str(text_file), "adapter": True}, step("eval", text_file))
    failed = run("run", recipe, llama, "-o", tmp_path / "out", expect=3)
    assert "step 2" in last_line(failed) and "adapter" in last_line(failed)


def test_a_step_reads_the_file_that_a_step_before_it_wrote(run, llama, text_file, tmp_path):
    recipe = write(tmp_path / "r.json", step("score", text_file, output="scores.json"),
                   step("slice", text_file, avg="25%", scores="scores.json"))  # fmt: skip
    done = run("run", recipe, llama, "-o", "out", "--json", cwd=tmp_path).json()
    assert done["steps"][1]["result"]["scores"]["values"] == json.loads((tmp_path / "scores.json").read_text())["values"]


# --- recipes that cannot be -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "recipe, words",
    [
        ("{", ["valid JSON"]),
        ("[]", ["must be an object"]),
        ({"steps": [{"verb": "eval"}]}, ['"recipe" must be 1', "found nothing"]),
        ({"recipe": 2, "steps": [{"verb": "eval"}]}, ['"recipe" must be 1', "found 2"]),
        ({"recipe": 1}, ['"steps"', "at least one"]),
        ({"recipe": 1, "steps": []}, ['"steps"', "at least one"]),
        ({"recipe": 1, "step": [], "steps": [{"verb": "eval"}]}, ['"step"', "none of recipe"]),
        ({"recipe": 1, "model": 3, "steps": [{"verb": "eval"}]}, ['"model" must be a string']),
        (["eval"], ["step 1", "must be an object"]),
        ([{"ppl": "wikitext2"}], ["step 1", '"verb"']),
        ([{"verb": "eval"}, {"verb": "slise"}], ["step 2", '"slise"', "depth merge, "]),
        ([{"verb": "run"}], ["step 1", '"run"']),
        ([{"verb": "depth"}], ["step 1", '"depth"']),
        ([{"verb": "completion"}], ["step 1", '"completion"']),
        ([{"verb": "slice", "average": "25%"}], ["step 1 (slice)", "--average", "dynslice slice --help"]),
        ([{"verb": "slice", "avg": 25}], ["step 1 (slice)", "--avg 25", "did you mean 25%"]),
        ([{"verb": "slice", "avg": True}], ["step 1 (slice)", '"avg"', "string or a number", "true"]),
        ([{"verb": "slice", "avg": "25%", "slice-head": "yes"}], ["step 1 (slice)", '"slice-head"', "true or false"]),
        ([{"verb": "slice", "avg": "25%", "target": "params=25%"}], ["step 1 (slice)", "excludes"]),
        ([{"verb": "slice", "avg": "25%", "output": "x"}], ["step 1 (slice)", '"output"', "dynslice run"]),
        ([{"verb": "eval", "model": "x"}], ["step 1 (eval)", '"model"']),
        ([{"verb": "eval", "resume": True}], ["step 1 (eval)", '"resume"', "dynslice run"]),
        ([{"verb": "depth merge", "threshold": 7}], ["step 1 (depth merge)", "--threshold", "7"]),
        ([{"verb": "slice", "avg": "25%"}, {"verb": "depth drop", "layers": 1}], ["step 2 (depth drop)", "dense", "step 1 slices"]),
    ],
    ids=lambda value: re.sub(r"\W+", "-", json.dumps(value))[:40].strip("-"),
)  # fmt: skip
def test_a_bad_recipe_is_one_line_that_names_file_and_step(run, llama, tmp_path, recipe, words):
    path = tmp_path / "bad.json"
    recipe = {"recipe": 1, "steps": recipe} if isinstance(recipe, list) else recipe
    path.write_text(recipe if isinstance(recipe, str) else json.dumps(recipe))
    failed = run("run", path, llama, "-o", tmp_path / "out", expect=3)
    assert len(failed.stderr.splitlines()) == 1 and failed.stdout == ""
    for word in [str(path), *words]:
        assert word in last_line(failed)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    "last, code, words",
    [
        ({"verb": "slice", "allocate": "constant"}, 2, ["step 2 of 2 (slice)", "--avg"]),
        ({"verb": "slice", "avg": "25%", "allocate": "constant", "base": "10%"}, 2, ["step 2 of 2 (slice)", "--base"]),
        ({"verb": "slice", "avg": "25%", "calib": "nowhere.txt"}, 4, ["step 2 of 2 (slice)", "nowhere.txt"]),
        ({"verb": "score", "metric": "beauty"}, 2, ["step 2 of 2 (score)", "beauty"]),
    ],
    ids=lambda value: value["verb"] if isinstance(value, dict) else "",
)
def test_what_the_last_step_lacks_is_said_before_the_first_begins(run, llama, text_file, tmp_path, last, code, words):
    recipe = write(tmp_path / "r.json", step("depth merge", text_file, **{"target-layers": 4}),
                   {"calib": str(text_file), "samples": 4, "seqlen": 64, **last})  # fmt: skip
    failed = run("run", recipe, llama, "-o", tmp_path / "out", expect=code)
    for word in words:
        assert word in last_line(failed)
    assert failed.stdout == "" and not list(tmp_path.glob("out*"))


def test_an_output_that_exists_is_replaced_with_force_alone(run, llama, tmp_path):
    recipe = write(tmp_path / "r.json", {"verb": "depth drop", "indices": "1"}, {"verb": "depth drop", "indices": "1"})
    run("run", recipe, llama, "-o", tmp_path / "out")
    assert "exists" in last_line(run("run", recipe, llama, "-o", tmp_path / "out", expect=2))
    run("run", recipe, llama, "-o", tmp_path / "out", "--force")
    assert "holds the model" in last_line(run("run", recipe, llama, "-o", llama, "--force", expect=2))


def test_output_without_a_step_that_writes_is_wrong_usage(run, llama, text_file, tmp_path):
    recipe = write(tmp_path / "r.json", step("eval", text_file))
    assert "writes a checkpoint" in last_line(run("run", recipe, llama, "-o", tmp_path / "out", expect=2))


# --- --check, --dry-run, and the recipes that come along --------------------------------------------------------


@pytest.mark.parametrize("recipe", sorted((REPOSITORY / "configs").glob("*.json")), ids=lambda path: path.stem)
def test_the_recipes_that_come_along_are_sound(run, recipe):
    checked = run("run", recipe, "--check", "--json").json()
    assert len(checked["description"]) > 20 and len(checked["steps"]) == len(json.loads(recipe.read_text())["steps"])


def test_check_prints_the_commands_and_needs_no_model(run, both, tmp_path):
    description, *lines = run("run", both, "--check", "-o", tmp_path / "out").stdout.splitlines()
    assert description == "# a bit of both"
    commands = [line.split(" ", 1)[1] for line in lines]
    between = tmp_path / "out.steps" / "1-depth-merge"
    assert commands[0].startswith("depth merge MODEL --calib ") and commands[0].endswith(f"--target-layers 4 -o {between}")
    assert commands[1].startswith(f"eval {between} ") and commands[2].startswith(f"slice {between} ")
    assert commands[3].startswith(f"eval {tmp_path / 'out'} ")
    assert not list(tmp_path.glob("out*"))


def test_dry_run_foretells_every_step_and_writes_nothing(run, llama, both, tmp_path):
    told = run("run", both, llama, "-o", tmp_path / "out", "--dry-run", "--json").json()
    assert [one["verb"] for one in told["steps"]] == ["depth merge", "eval", "slice", "eval"]
    assert all(one["needs"]["memory"]["bytes"] > 0 for one in told["steps"])
    assert [one["of_original_model"] for one in told["steps"]] == [False, True, True, True]
    shown = run("run", both, llama, "-o", tmp_path / "out", "--dry-run").stdout
    assert shown.count("does not exist yet") == 3
    assert not list(tmp_path.glob("out*"))


# --- stopped runs -----------------------------------------------------------------------------------------------


@pytest.fixture
def long(llama, text_file, tmp_path):
    """The command line of a recipe of four steps, in each of which a run can be stopped."""
    recipe = write(tmp_path / "long.json", step("depth streamline", text_file, layers=2, window="cosine"), step("eval", text_file),
                   step("slice", text_file, avg="25%"), step("eval", text_file))  # fmt: skip
    return ["run", recipe, llama, "-o", tmp_path / "out"]


@pytest.fixture
def cache(tmp_path):
    return {"DYNSLICE_CACHE": tmp_path / "cache"}


@pytest.fixture
def stop(run, cache):
    """stop(command, "slicing:2") -> Result of a run that was killed behind the second save of slicing."""

    def until(command, after, expect=-signal.SIGKILL):
        return run(*command, env={**cache, "DYNSLICE_JOURNAL": "every", "DYNSLICE_STOP_AFTER": after}, expect=expect)

    return until


def weights(folder):
    return {name: (folder / name).read_bytes() for name in ("model.safetensors", "config.json")}


def record(folder):
    """dynslice.json without the words of the recipe's own command line."""
    whole = json.loads((folder / "dynslice.json").read_text())
    return re.sub(r'"(--resume|--json)",? ?', "", json.dumps(whole))


def test_killed_again_and_again_it_ends_with_the_same_bytes(run, kill_and_resume, long, cache, tmp_path):
    out = tmp_path / "out"
    run(*long, env=cache)
    expected = weights(out), record(out)
    out.rename(tmp_path / "whole")

    def the_checkpoint_is_whole_or_not_there():
        if out.exists():
            assert weights(out) == expected[0]

    killed = kill_and_resume(long, env=cache, after_kill=the_checkpoint_is_whole_or_not_there)
    assert killed.kills >= 10
    for place in ("the step after step 2", "layer 3 of 6 (scoring)", "layer 3 of 4 (slicing)"):
        assert place in killed.places
    assert (weights(out), record(out)) == expected
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out"]


@pytest.mark.parametrize("after, title, place", [("scoring:2", "step 1 of 4 (depth streamline)", "layer 3 of 6 (scoring)"),
                                                 ("slicing:2", "step 3 of 4 (slice)", "layer 3 of 4 (slicing)")])  # fmt: skip
def test_ctrl_c_says_which_step_and_how_to_go_on(stop, long, cache, tmp_path, after, title, place):
    out = tmp_path / "out"
    stopped = stop(long, f"{after}:INT", expect=130)
    said = stopped.stderr.splitlines()[-1]
    beginning = f"dynslice: {title}: interrupted; to go on from {place}: "
    assert said.startswith(beginning) and said.endswith(" --resume"), said
    assert not out.exists()
    again = subprocess.run(said[len(beginning):], shell=True, capture_output=True, text=True, timeout=300,
                           env={**os.environ, **{name: str(value) for name, value in cache.items()}})  # fmt: skip
    assert again.returncode == 0 and f"Resuming at {place}" in again.stderr, again.stderr
    assert again.stdout.count("== step") == 4 and again.stdout.count("perplexity") >= 2  # earlier steps are shown again
    assert (out / "config.json").exists() and not (tmp_path / "out.steps").exists()


@pytest.fixture
def stopped(stop, long):
    """The command line of a run that was killed in its third step."""
    stop(long, "slicing:1")
    return long


def test_a_stopped_run_is_not_dropped_silently(run, stopped, cache, tmp_path):
    refused = run(*stopped, env=cache, expect=2)
    assert all(word in last_line(refused) for word in ("--resume", "--force", "stopped at the step after step 2;"))
    again = run(*stopped, "--force", env=cache)
    assert "Starting over" in again.stderr and (tmp_path / "out" / "config.json").exists()
    assert not (tmp_path / "out.steps").exists() and not (tmp_path / "out.partial").exists()


def test_finished_steps_are_not_done_again_and_their_results_are_kept(run, stopped, cache, tmp_path):
    again = run(*stopped, "--resume", "--json", env=cache)
    assert "Resuming at the step after step 2" in again.stderr
    shown = again.json()["steps"]
    assert shown[0]["result"]["removed"] and shown[1]["result"]["perplexity"]  # printed for people in the run before
    assert (tmp_path / "out" / "config.json").exists()


def test_steps_that_were_done_may_not_change_but_later_ones_may(run, stopped, cache, tmp_path):
    path = pathlib.Path(stopped[1])
    recipe = json.loads(path.read_text())
    recipe["steps"][3]["seqlen"] = 32
    path.write_text(json.dumps(recipe))
    recipe["steps"][0]["layers"] = 3
    path.with_name("other.json").write_text(json.dumps(recipe))
    refused = run(stopped[0], path.with_name("other.json"), *stopped[2:], "--resume", env=cache, expect=2)
    assert all(word in last_line(refused) for word in ("step 1 of 4 (depth streamline)", "--layers 3", "--layers 2"))
    run(*stopped, "--resume", env=cache)


def test_another_model_is_refused(run, stopped, tiny_model, cache):
    refused = run(*stopped[:2], tiny_model("llama"), *stopped[3:], "--resume", env=cache, expect=2)
    assert "another job" in last_line(refused) and "model" in last_line(refused)


def test_a_step_that_fails_leaves_those_before_it_to_go_on_from(run, llama, text_file, tmp_path):
    """Only the second step finds out that what it works on has become too shallow."""
    steps = [{"verb": "depth drop", "indices": "1"}, {"verb": "depth drop", "indices": "5"}]
    recipe = write(tmp_path / "r.json", *steps)
    failed = run("run", recipe, llama, "-o", tmp_path / "out", expect=2)
    assert "step 2 of 2 (depth drop)" in last_line(failed) and last_line(failed).endswith("--resume")
    assert not (tmp_path / "out").exists()
    steps[1]["indices"] = "4"
    write(recipe, *steps)
    again = run("run", recipe, llama, "-o", tmp_path / "out", "--resume")
    assert "Resuming at the step after step 1" in again.stderr
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_hidden_layers"] == 4
