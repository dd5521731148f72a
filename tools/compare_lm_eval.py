#!/usr/bin/env python3
"""Compares `dynslice eval --tasks` with lm-evaluation-harness' `hf` model on the CPU: predictions, accuracies and speed.

Run it with the Python of the tests (tools/setup.sh --tests). The data are ARC's and PIQA's published files in DATA (or
$DYNSLICE_DATA_DIR); docs/evaluation.md says what they look like. lm-eval gets the batch size with which it was fastest
on the first questions of a task. Task by task both programs run one after the other. On a busy machine look at the
processor's seconds, which what else runs there changes less than the time that passes.
"""

import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "tests" / "interop"))
import harness_tasks  # noqa: E402


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder or a .gguf file")
    parser.add_argument("--dynslice", default=REPOSITORY / "build" / "bin" / "dynslice", help="the program")
    parser.add_argument("--data", default=os.environ.get("DYNSLICE_DATA_DIR"), help="folder with arc/ and piqa/")
    parser.add_argument("--tasks", default="arc_easy,arc_challenge,piqa")
    parser.add_argument("--limit", type=int, help="only the first questions of every task")
    parser.add_argument("--batch-sizes", default="1,4,16,64", help="that lm-eval may choose from")
    parser.add_argument("--dtype", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--json", help="also write the figures to this file")
    arguments = parser.parse_args()
    if not arguments.data:
        parser.error("neither --data nor DYNSLICE_DATA_DIR names the folder with arc/ and piqa/")
    for name, path in (("--dynslice", arguments.dynslice), ("--model", arguments.model), ("--data", arguments.data)):
        if not pathlib.Path(path).exists():
            parser.exit(4, f"compare_lm_eval: error: {name} {path} is not there\n")
    return arguments


def run_ours(arguments, task):
    """(samples, figures of the task, questions a second by its own clock, processor seconds of the whole program)."""
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "samples.jsonl"
        command = [arguments.dynslice, "eval", arguments.model, "--tasks", task, "--data-dir", arguments.data, "--json", "-q",
                   "--dtype", arguments.dtype, "--log-samples", file, "--force"]
        if arguments.limit:
            command += ["--limit", arguments.limit]
        environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, check=True, env=environment)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        result = json.loads(done.stdout)
        samples = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return samples, result["tasks"][task], result["questions_per_second"], seconds


def fastest_batch_size(model, task, data, sizes):
    """By the first questions; the seconds are those of the evaluation alone, the model being loaded."""
    if len(sizes) == 1:
        return sizes[0]
    seconds = {}
    for size in sizes:
        model.batch_size_per_gpu = size
        _, seconds[size] = harness_tasks.evaluate(model, [task], data, limit=96)
    return min(seconds, key=seconds.get)


def main():
    arguments = parse_arguments()
    try:
        data = harness_tasks.published_data(arguments.data)
    except FileNotFoundError as error:
        print(f"compare_lm_eval: error: {error.filename} is not there", file=sys.stderr)
        return 4
    sizes = [int(size) for size in arguments.batch_sizes.split(",")]
    report = {}
    print(f"{'task':14} {'n':>5} {'same':>7} {'norm':>7} {'largest':>8}   {'acc':>13}   {'acc_norm':>13}   questions/s: ours, lm-eval, ratio; processor seconds")
    with harness_tasks.offline():
        model = harness_tasks.hf_model(arguments.model, sizes[0], {"fp32": "float32", "bf16": "bfloat16"}[arguments.dtype])
        for task in arguments.tasks.split(","):
            samples, ours, our_speed, our_work = run_ours(arguments, task)
            model.batch_size_per_gpu = fastest_batch_size(model, task, data, sizes)
            work = time.process_time()
            results, seconds = harness_tasks.evaluate(model, [task], data, limit=arguments.limit)
            work = time.process_time() - work
            theirs, their_speed = results["results"][task], len(samples) / seconds
            agreement = harness_tasks.compare(samples, results["samples"][task])
            report[task] = {**agreement, "acc": [ours["acc"], theirs["acc,none"]], "acc_norm": [ours["acc_norm"], theirs["acc_norm,none"]],
                            "questions_per_second": [our_speed, their_speed],
                            "processor_seconds": [our_work, work], "batch_size": model.batch_size_per_gpu}
            print(f"{task:14} {agreement['n']:5} {agreement['same']:7.2%} {agreement['same_norm']:7.2%} {agreement['largest_difference']:8.1e}   "
                  f"{ours['acc']:.4f} {theirs['acc,none']:.4f}   {ours['acc_norm']:.4f} {theirs['acc_norm,none']:.4f}   "
                  f"{our_speed:.1f} {their_speed:.1f} (batch size {model.batch_size_per_gpu}) {our_speed / their_speed:.1f};"
                  f" {our_work:.0f} {work:.0f} {work / our_work:.1f}", flush=True)
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
