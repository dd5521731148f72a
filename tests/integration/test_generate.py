"""dynslice generate: text on standard output, its JSON, its errors, and how it ends when it is cut short."""
import fcntl
import json
import os
import pty
import signal
import subprocess

import pytest

from conftest import Reader

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"


@pytest.fixture(scope="module")
def llama(tiny_model):
    return tiny_model("llama")


def copy_of(folder, target, **files):
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).symlink_to(path)
    for name, content in files.items():
        path = target / (name + ".json")
        path.unlink(missing_ok=True)
        path.write_text(json.dumps(content))
    return target


def piped(binary, arguments, text=b"", **options):
    return subprocess.run([binary, *map(str, arguments)], input=text, capture_output=True, timeout=300, **options)


def assert_fails(result, code, *parts):
    assert result.code == code, result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and all(part in lines[0] for part in parts), result.stderr
    assert result.stdout == ""


def test_the_text_goes_to_standard_output_and_all_else_to_standard_error(run, llama):
    result = run("generate", llama, "--prompt", "the city of", "--max-tokens", 12)
    report = run("generate", llama, "--prompt", "the city of", "--max-tokens", 12, "--json").json()
    assert result.stdout == report["text"] + "\n" and report["text"]
    assert "tokens/s" in result.stderr and "--max-tokens" in result.stderr
    assert run("generate", llama, "--prompt", "the city of", "--max-tokens", 12, "-q").stderr == ""


def test_the_json_says_what_was_read_and_written(run, llama, tiny_tokenizer):
    result = run("generate", llama, "--prompt", "the city of", "--max-tokens", 12, "--json").json()
    ids = tiny_tokenizer("the city of")["input_ids"]
    assert result["prompt"] == "the city of" and result["prompt_ids"] == ids and result["prompt_tokens"] == len(ids)
    assert result["tokens"] == len(result["ids"]) == 12 and result["finish_reason"] == "length"
    assert result["text"] == tiny_tokenizer.decode(result["ids"], skip_special_tokens=True)
    assert result["end_ids"] == [0] and result["chat"] is False and result["max_tokens"] == 12
    assert result["sampling"] == {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "seed": 0}
    for phase in ("prefill", "decode"):
        assert result[phase]["seconds"] > 0 and result[phase]["tokens_per_second"] > 0
    assert result["dtype"] == "fp32" and result["device"] == "cpu" and result["peak_rss_bytes"] > result["weight_bytes"] > 0


def test_a_prompt_comes_from_an_option_a_file_or_standard_input(run, binary, llama, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_text("the naïve king\n")
    common = ["--max-tokens", 3, "--json"]
    expected = run("generate", llama, "--prompt", "the naïve king\n", *common).json()
    assert run("generate", llama, "--prompt-file", file, *common).json()["ids"] == expected["ids"]
    for source in (["--prompt-file", "-"], []):
        done = piped(binary, ["generate", llama, *source, *common], file.read_bytes())
        assert json.loads(done.stdout)["prompt_ids"] == expected["prompt_ids"]


def test_drawing_is_the_same_for_the_same_seed_whatever_the_threads(run, llama):
    def draw(*options):
        result = run("generate", llama, "--prompt", "the", "--max-tokens", 40, "--ignore-eos", "--temperature", 1.5,
                     "--top-k", 100, "--top-p", 0.95, "--json", *options).json()
        return result["ids"]

    first = draw("--seed", 5, "--threads", 1)
    assert first == draw("--seed", 5, "--threads", 2)
    assert first != draw("--seed", 6)
    greedy = run("generate", llama, "--prompt", "the", "--max-tokens", 40, "--ignore-eos", "--json").json()["ids"]
    assert first != greedy
    assert run("generate", llama, "--prompt", "the", "--max-tokens", 40, "--ignore-eos", "--temperature", 2, "--top-k", 1,
               "--json").json()["ids"] == greedy
    quiet = run("generate", llama, "--prompt", "the", "--max-tokens", 40, "--ignore-eos", "--top-k", 7, "--json")
    assert quiet.json()["ids"] == greedy and "--top-k and --top-p are not used" in quiet.stderr


def test_it_ends_at_any_of_the_models_end_tokens(run, llama, tmp_path):
    ids = run("generate", llama, "--prompt", "the city", "--max-tokens", 20, "--json").json()["ids"]
    ends = [ids[9], 511]
    folder = copy_of(llama, tmp_path / "ends", generation_config={"eos_token_id": ends})
    result = run("generate", folder, "--prompt", "the city", "--max-tokens", 20, "--json").json()
    assert result["ids"] == ids[:ids.index(ids[9]) + 1] and result["finish_reason"] == "end"
    assert set(result["end_ids"]) == {0, *ends}
    assert run("generate", folder, "--prompt", "the city", "--max-tokens", 20, "--ignore-eos", "--json").json()["ids"] == ids


def test_it_ends_before_a_stop_of_which_nothing_is_shown(run, llama):
    text = run("generate", llama, "--prompt", "the city", "--max-tokens", 30).stdout
    stop = text[7:10]
    result = run("generate", llama, "--prompt", "the city", "--max-tokens", 30, "--stop", "never there", "--stop", stop)
    assert result.stdout == text[:text.index(stop)] + "\n" and "--stop" in result.stderr


def test_every_kind_of_checkpoint_writes(run, llama, text_file, tmp_path):
    common = ["--calib", text_file, "--samples", 2, "--seqlen", 64]
    run("slice", llama, "--avg", "25%", "--allocate", "constant", *common, "-o", tmp_path / "sliced")
    run("quantize", llama, "--bits", "4", "--method", "rtn", "-o", tmp_path / "packed")
    run("export", llama, "--gguf", "-o", tmp_path / "model.gguf")
    options = ["--prompt", "the city of", "--max-tokens", 10, "--ignore-eos", "--json"]
    dense = run("generate", llama, *options).json()
    assert run("generate", tmp_path / "model.gguf", *options).json()["ids"] == dense["ids"]
    for name in ("sliced", "packed"):
        result = run("generate", tmp_path / name, *options).json()
        assert result["tokens"] == 10 and result["prompt_ids"] == dense["prompt_ids"]
    # Packed weights are ordinary ones in memory.
    assert result["weight_bytes"] == dense["weight_bytes"]


def test_chat_puts_the_message_into_the_models_template(run, llama, tmp_path):
    folder = copy_of(llama, tmp_path / "chat")
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    options = ["--chat", "--prompt", "hi", "--max-tokens", 2, "--json"]
    assert run("generate", folder, *options).json()["prompt"] == "<user>hi\n<assistant>"
    assert run("generate", folder, *options, "--system", "be\nbrief").json()["prompt"] == "<system>be\nbrief\n<user>hi\n<assistant>"
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no system messages') }}")
    assert_fails(run("generate", folder, *options, expect=None), 3, "chat_template.jinja: line 1", "no system messages")
    (folder / "chat_template.jinja").write_text("a\n{% if %}")
    assert_fails(run("generate", folder, *options, expect=None), 3, "chat_template.jinja: line 2")
    assert_fails(run("generate", llama, *options, expect=None), 4, str(llama), "no chat template", "--chat")


@pytest.mark.parametrize("options, parts", [
    (["--prompt", ""], ["prompt is empty"]),
    ([], ["prompt is empty"]),
    (["--prompt", "a", "--temperature", "-1"], ["temperature of -1", "0 or more"]),
    (["--prompt", "a", "--temperature", "nan"], ["temperature"]),
    (["--prompt", "a", "--top-p", "0"], ["top-p of 0", "above 0"]),
    (["--prompt", "a", "--top-p", "1.01"], ["top-p of 1.01", "1 at the most"]),
    (["--prompt", "a", "--top-k", "-3"], ["top-k of -3"]),
    (["--prompt", "a", "--max-tokens", "0"], ["--max-tokens"]),
    (["--prompt", "a", "--prompt-file", "b"], ["--prompt"]),
    (["--prompt", "a", "--system", "b"], ["--chat"]),
    (["--prompt", "a " * 600], ["512 positions", "shorten"]),
])
def test_wrong_usage_is_said_in_a_line(run, llama, options, parts):
    assert_fails(run("generate", llama, *options, "-q", expect=None), 2, *parts)


def test_a_prompt_file_that_is_not_there_is_missing(run, llama, tmp_path):
    assert_fails(run("generate", llama, "--prompt-file", tmp_path / "no.txt", "-q", expect=None), 4, "no.txt")


def test_a_tokenizer_of_another_model_is_told(run, llama, tmp_path):
    import safetensors.torch

    tensors = safetensors.torch.load_file(llama / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name][:100].contiguous()
    config = json.loads((llama / "config.json").read_text())
    folder = copy_of(llama, tmp_path / "small", config={**config, "vocab_size": 100})
    (folder / "model.safetensors").unlink()
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    assert_fails(run("generate", folder, "--prompt", "the city of kings", "-q", expect=None), 3, "token id",
                 "100 entries", "different models")


def test_a_model_with_weights_that_cannot_be_computed_with_is_told(run, llama, tmp_path):
    import safetensors.torch

    tensors = safetensors.torch.load_file(llama / "model.safetensors")
    tensors["model.norm.weight"] *= 100
    tensors["lm_head.weight"] *= 1e38  # products of the two are beyond fp32
    folder = copy_of(llama, tmp_path / "huge")
    (folder / "model.safetensors").unlink()
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    assert_fails(run("generate", folder, "--prompt", "the", "-q", expect=None), 3, "logit")


def test_it_ends_quietly_when_the_reader_goes_away(binary, llama):
    command = [binary, "generate", llama, "--prompt", "the", "--max-tokens", "500", "--ignore-eos"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(1)
    process.stdout.close()
    stderr = process.stderr.read().decode()
    assert process.wait(timeout=60) == 5
    assert "dynslice:" not in stderr and "tokens/s" not in stderr, stderr


def test_a_full_disk_is_told(binary, llama):
    with open("/dev/full", "wb") as full:
        done = subprocess.run([binary, "generate", llama, "--prompt", "the", "-q"], stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 5 and b"stdout: cannot be written" in done.stderr


def test_ctrl_c_ends_it_in_the_middle(binary, llama, tmp_path):
    """The text until then has been shown; with --json nothing is."""
    slow = copy_of(llama, tmp_path / "long", config={**json.loads((llama / "config.json").read_text()),
                                                      "max_position_embeddings": 1 << 20})
    command = [binary, "generate", slow, "--prompt", "the", "--max-tokens", "1000000", "--ignore-eos"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.read(4)
    process.send_signal(signal.SIGINT)
    rest, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and rest.endswith(b"\n")
    assert stderr.decode().strip().splitlines()[-1] == "dynslice: interrupted"

    leader, follower = pty.openpty()  # where progress is shown at once
    process = subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, stderr=follower)
    os.close(follower)
    shown = Reader(leader)
    shown.wait_for("Writing .*B/s")
    process.send_signal(signal.SIGINT)
    assert shown.rest().splitlines()[-1] == "dynslice: interrupted"
    os.close(leader)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and out == b""


def test_text_comes_while_it_is_written_in_whole_characters(binary, llama):
    """On a terminal, in pieces, each of which is UTF-8."""
    leader, follower = pty.openpty()
    process = subprocess.Popen([binary, "generate", llama, "--prompt", "the", "--max-tokens", "200", "--ignore-eos",
                                "--temperature", "3", "-q"], stdin=subprocess.DEVNULL, stdout=follower, stderr=subprocess.DEVNULL)
    os.close(follower)
    pieces = []
    while True:
        try:
            piece = os.read(leader, 65536)
        except OSError:  # the other side is closed
            break
        if not piece:
            break
        pieces.append(piece)
    assert process.wait(timeout=60) == 0
    assert len(pieces) > 3
    for piece in pieces:
        piece.decode()


def test_ctrl_c_ends_the_wait_for_standard_input(binary, llama):
    process = subprocess.Popen([binary, "generate", llama, "--prompt-file", "-", "-q"], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    room = fcntl.fcntl(process.stdin, fcntl.F_GETPIPE_SZ)
    os.write(process.stdin.fileno(), b"a" * (room + 1))  # returns once the program reads
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130  # standard input is still open
    process.stdin.close()
    assert process.stdout.read() == b"" and process.stderr.read() == b"dynslice: interrupted\n"


def test_a_recipe_may_write_with_what_it_made(run, llama, tmp_path):
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps({"recipe": 1, "steps": [{"verb": "depth drop", "indices": "1"},
                                            {"verb": "generate", "prompt": "the city", "max-tokens": "5"}]}))
    result = run("run", recipe, llama, "-o", tmp_path / "out").stdout
    assert run("generate", tmp_path / "out", "--prompt", "the city", "--max-tokens", 5).stdout in result


def test_without_a_prompt_a_terminal_is_not_waited_for(binary, llama):
    leader, follower = pty.openpty()
    done = subprocess.run([binary, "generate", llama], stdin=follower, capture_output=True, text=True, timeout=60)
    os.close(leader), os.close(follower)
    assert done.returncode == 2 and "--prompt" in done.stderr


def test_a_dry_run_says_what_it_would_take(run, model):
    options = ["--prompt", "word " * 3000, "--max-tokens", 1000]
    result = run("generate", model, *options, "--dry-run", "--json").json()
    assert result["dry_run"] == "generate" and result["time"]["seconds"] > 0
    # Keys and values, fp32, of 4000 positions in 30 layers of 3 heads of 64.
    parts = result["memory"]["parts"]
    assert parts["weights"] == 134515008 * 4
    tokens = parts["cache"] / (2 * 4 * 30 * 3 * 64)
    assert tokens == int(tokens) and 4000 <= tokens <= 4010
