"""Runs the same commands with two builds of dynslice and compares all that they write, byte for byte.

usage: compare_builds.py [--only REGEX] [--list] [--keep FOLDER] [--threads N] OLD NEW

OLD and NEW are build folders, or programs. The commands cover every verb, on tiny models of llama, mistral and qwen2, a
GGUF file, packed weights, and on the real model that DYNSLICE_TEST_MODEL names (without it those are left out, and said
to be). Both builds run a command before the next one begins, in folders of their own; what differs is shown as soon as
it does. What cannot be the same, times and memory, is left out of standard output, standard error and JSON.

Exit code: 0 nothing differs, 1 something does, 2 wrong usage.
"""

import argparse
import difflib
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]

CALIB = "--calib text.txt --samples 6 --seqlen 64"
PPL = "--ppl text.txt --ppl-range 8000: --samples 4 --seqlen 64"
REAL_CALIB = "--calib text.txt --samples 4 --seqlen 128"
REAL_PPL = "--ppl text.txt --ppl-range 8000: --samples 2 --seqlen 128"
TRAINED = "--seqlen 64 --samples 24 --updates 4 --held-out 4 --batch 4"

# One command a line, in order: later ones read what earlier ones wrote. {model} is the real model.
COMMANDS = f"""
inspect llama --json
inspect mistral
inspect qwen2 --json
score llama {CALIB} -o lr.json
score mistral {CALIB} --metric cka --json
score qwen2 {CALIB} --metric lim --json
score llama --metric zd --json
plan llama --avg 25% --base auto {CALIB} --sweep-samples 2 -o plan.json
plan mistral --target params=20% --allocate blend --method modular {CALIB} --gradient-samples 4 --json
slice llama --plan plan.json {CALIB} -o sliced-llama
slice mistral --avg 25% --basis layer --refit all --slice-head --max-ratio 40% {CALIB} -o sliced-mistral
slice qwen2 --avg 20% --allocate loss {CALIB} --gradient-samples 4 -o sliced-qwen2
slice llama --avg 20% --basis global --directions loss {CALIB} --gradient-samples 4 -o global-llama
slice qwen2 --avg 25% --method modular {CALIB} --gradient-samples 4 --json -o modular-qwen2
slice llama --avg 25% --preset best --allocate search --trials 6 --sweep-samples 2 {CALIB} -o best-llama
eval llama {PPL} --json
eval sliced-mistral --against mistral {PPL} --json
eval sliced-qwen2 --tasks piqa,arc_easy --data-dir data --json
quantize llama --bits 8,4 --low-share 50% {CALIB} -o packed-llama
quantize qwen2 --bits 4 --method rtn --order zd --fake-quant -o rtn-qwen2
quantize mistral --gguf --types q8_0,q4_1 --bits 8,4 {CALIB} -o mistral.gguf
quantize llama --sweep sweep.json --bits 8,2 --method rtn {CALIB} --ppl text.txt --ppl-range 8000: --ppl-samples 2
eval packed-llama {PPL} --json
export qwen2 --gguf --type f16 -o qwen2.gguf
eval qwen2.gguf {PPL} --protocol llamacpp --json
inspect mistral.gguf
slice mistral.gguf --avg 25% --method modular --allocate constant {CALIB} --gradient-samples 4 -o modular-gguf
export modular-gguf --gguf -o modular.gguf
depth drop llama --layers 1 {CALIB} -o dropped
depth merge qwen2 --target-layers 3 {CALIB} -o merged
depth streamline mistral --layers 2 --replace linear {CALIB} -o linear
depth streamline llama --layers 1 --replace layer --window cosine --calib text.txt {TRAINED} -o trained
heal dropped --lora --text text.txt {TRAINED} --dropout 0.1 -o healed
heal sliced-llama --distill llama --text text.txt {TRAINED} -o distilled
compare llama sliced-llama merged packed-llama --kl --no-speed --no-cache {PPL} --csv table.csv --markdown table.md --json
generate sliced-llama --prompt "The city of" --max-tokens 24 --json
generate qwen2.gguf --prompt "The city of" --max-tokens 24 --temperature 0.8 --top-p 0.9 --seed 3
run recipe.json -o recipe --json
slice packed-llama --avg 25% --dry-run {CALIB} --max-memory 2GB
bench --help
completion bash
inspect {{model}} --json
score {{model}} {REAL_CALIB} --json
slice {{model}} --avg 25% {REAL_CALIB} -o real-sliced
slice {{model}} --avg 25% --method modular {REAL_CALIB} --gradient-samples 2 -o real-modular
eval real-sliced --against {{model}} {REAL_PPL} --json
quantize real-modular --bits 4 --method rtn -o real-packed
generate real-packed --prompt "The capital of France is" --max-tokens 16
""".strip().split("\n")

RECIPE = {"recipe": 1, "model": "llama", "steps": [
    {"verb": "slice", "avg": "25%", "allocate": "constant", "calib": "text.txt", "samples": 4, "seqlen": 64},
    {"verb": "eval", "ppl": "text.txt", "samples": 2, "seqlen": 64},
    {"verb": "quantize", "bits": "8", "method": "rtn"},
    {"verb": "eval", "ppl": "text.txt", "samples": 2, "seqlen": 64}]}  # fmt: skip

# What differs from run to run: keys of JSON, and times, rates and memory in text.
MEASURED_KEYS = re.compile(r"seconds|per_second|^created$|peak_rss_bytes|output_room_bytes|^program$")
MEASURED_TEXT = re.compile(r"(?<=peak memory )[\d.]+ [kMG]B|[\d.]+ ?((\w|-)+/s|% of what this machine|ms|s|min|h)\b")
MEASURED_LINES = re.compile(r"^(  program |memory, at the most|  of  ).*$", re.MULTILINE)  # of --dry-run
PROGRESS = re.compile(rb"^[A-Z][^:]*: (\d+%|\d+ of)")  # a line now and then, as time passes


def tiny_world(folder):
    """Models, text, tasks and a recipe, as the integration tests have them."""
    sys.path.insert(0, str(REPOSITORY / "tests"))
    from conftest import make_text, save_tiny_model, train_tokenizer

    tokenizer = train_tokenizer()
    save_tiny_model(folder / "llama", tokenizer, "llama", num_hidden_layers=6)
    save_tiny_model(folder / "mistral", tokenizer, "mistral", seed=1, sliding_window=32, dtype="bfloat16")
    save_tiny_model(folder / "qwen2", tokenizer, "qwen2", seed=2, tie_word_embeddings=True, max_shard_size="300KB")
    (folder / "text.txt").write_text(make_text(1200, seed=3), encoding="utf-8")
    data = folder / "data"
    for name in ("piqa", "arc"):
        (data / name).mkdir(parents=True)
    piqa = [{"goal": f"the river {i} was in the", "sol1": "city", "sol2": "old house"} for i in range(12)]
    (data / "piqa" / "valid.jsonl").write_text("".join(json.dumps(row) + "\n" for row in piqa))
    (data / "piqa" / "valid-labels.lst").write_text("".join(f"{i % 2}\n" for i in range(12)))
    choices = [{"text": word, "label": label} for word, label in zip(("city", "house", "army", "song"), "ABCD")]
    arc = [{"id": f"Q{i}", "answerKey": "ABCD"[i % 4], "question": {"stem": f"Which of the old rivers {i} was first?", "choices": choices}}
           for i in range(12)]  # fmt: skip
    for split in ("Test", "Dev", "Train"):
        (data / "arc" / f"ARC-Easy-{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in arc))
    (folder / "recipe.json").write_text(json.dumps(RECIPE))


def without_measurements(value):
    if isinstance(value, dict):
        return {key: without_measurements(item) for key, item in value.items() if not MEASURED_KEYS.search(key)}
    if isinstance(value, list):
        return [without_measurements(item) for item in value]
    return MEASURED_TEXT.sub("#", value) if isinstance(value, str) else value


def comparable(content, name):
    """What must be the same of a file, or of what a program printed."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return content
    if name.endswith(".jsonl"):
        return text
    try:
        return json.dumps(without_measurements(json.loads(text)), indent=1)
    except ValueError:
        return text if name.endswith((".svg", ".py")) else MEASURED_TEXT.sub("#", MEASURED_LINES.sub("#", text))


class Side:
    """One of the two builds, in a folder of its own."""

    def __init__(self, program, folder, environment):
        self.program, self.folder, self.environment = program, folder, environment
        self.known = {}  # files that were there before the command, with their time and size

    def run(self, command):
        """{name: content} of standard output, standard error, and every file that is new or changed."""
        # The command line stands in what is written, so both have the same name there.
        done = subprocess.run(["dynslice", *command], executable=self.program, cwd=self.folder, env=self.environment,
                              stdin=subprocess.DEVNULL, capture_output=True)  # fmt: skip
        lines = [line for line in done.stderr.splitlines(keepends=True) if not PROGRESS.match(line)]
        outputs = {"exit code": str(done.returncode).encode(), "standard output": done.stdout, "standard error": b"".join(lines)}
        for path in sorted(self.folder.rglob("*")):
            if path.is_file():
                state = (path.stat().st_mtime_ns, path.stat().st_size)
                name = str(path.relative_to(self.folder))
                if self.known.get(name) != state:
                    self.known[name] = state
                    outputs[name] = path.read_bytes()
        return outputs


def differences(old, new):
    """Lines that say what differs between the outputs of a command."""
    for name in sorted({*old, *new}):
        if name not in new or name not in old:
            yield f"  {name}: only the {'old' if name in old else 'new'} build writes it"
            continue
        before, after = comparable(old[name], name), comparable(new[name], name)
        if before == after:
            continue
        if isinstance(before, bytes) or isinstance(after, bytes):
            yield f"  {name}: differs ({len(before):,} and {len(after):,} bytes)"
            continue
        changes = difflib.unified_diff(before.split("\n"), after.split("\n"), "old", "new", n=0, lineterm="")
        yield f"  {name}:"
        for _, change in zip(range(12), changes):
            yield f"    {change[:200]}"


def program_of(path):
    path = path.resolve()
    program = path / "bin" / "dynslice" if path.is_dir() else path
    if not os.access(program, os.X_OK):
        sys.exit(f"compare_builds: error: there is no program {program}; build it with tools/setup.sh --build-dir {path}")
    return program


def main():
    parser = argparse.ArgumentParser(prog="compare_builds.sh", description=__doc__.splitlines()[0],
                                     usage=__doc__.splitlines()[2].removeprefix("usage: ").replace("builds.py", "builds.sh"))  # fmt: skip
    parser.add_argument("old", type=pathlib.Path, metavar="OLD", nargs="?", help="a build folder, or a program")
    parser.add_argument("new", type=pathlib.Path, metavar="NEW", nargs="?", help="another one")
    parser.add_argument("--only", default="", metavar="REGEX", help="only the commands that match (those that they read from must too)")
    parser.add_argument("--list", action="store_true", help="print the commands and exit")
    parser.add_argument("--keep", type=pathlib.Path, metavar="FOLDER", help="leave what both wrote there, instead of removing it")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads of every command (default: 1)")
    options = parser.parse_args()
    if options.list:
        print("\n".join(COMMANDS))
        return 0
    if options.old is None or options.new is None:
        parser.error("OLD and NEW are required")
    programs = [program_of(options.old), program_of(options.new)]
    model = os.environ.get("DYNSLICE_TEST_MODEL")

    folder = options.keep or pathlib.Path(tempfile.mkdtemp(prefix="compare-builds."))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return compare(programs, folder.resolve(), model, options)
    finally:
        if options.keep is None:
            shutil.rmtree(folder)


def compare(programs, folder, model, options):
    tiny_world(folder / "world")
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "OMP_WAIT_POLICY": "passive", "DYNSLICE_CACHE": str(folder / "cache"),
                   "HF_HUB_OFFLINE": "1"}  # fmt: skip
    sides = []
    for name, program in zip(("old", "new"), programs):
        # Both see the same path, since paths stand in what is written: each side's folder is moved to it while it runs.
        shutil.copytree(folder / "world", folder / name)
        sides.append(Side(program, folder / "here", environment))
    for name, side in zip(("old", "new"), sides):
        side.place = folder / name
        os.rename(side.place, side.folder)
        side.run(["--version"])
        os.rename(side.folder, side.place)

    ran = left_out = differ = 0
    for line in COMMANDS:
        if "{model}" in line or "real-" in line:
            if not model:
                left_out += 1
                continue
            line = line.replace("{model}", model)
        if not re.search(options.only, line):
            continue
        outputs = []
        for side in sides:
            shutil.rmtree(folder / "cache", ignore_errors=True)
            os.rename(side.place, side.folder)
            outputs.append(side.run([*shlex.split(line)]))
            os.rename(side.folder, side.place)
        found = list(differences(*outputs))
        ran, differ = ran + 1, differ + bool(found)
        files = len(outputs[0]) - 3
        code = outputs[0]["exit code"].decode()
        print(f"{'DIFFERS' if found else 'same'}: {line}" + (f" ({files} files)" if files else "") + (f" [exit code {code}]" if code != "0" else ""), flush=True)
        if found:
            print("\n".join(found), flush=True)
        if code != "0" and not found:
            print(outputs[0]["standard error"].decode(errors="replace")[-400:])
    if left_out:
        print(f"left out: {left_out} commands on a real model, since DYNSLICE_TEST_MODEL is not set")
    print(f"{ran} commands, {differ} differ")
    return 1 if differ or not ran else 0


if __name__ == "__main__":
    sys.exit(main())
