"""The measuring part of tools/bench.sh, which says what the options mean. Needs nothing beyond Python itself."""
import argparse
import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
SEQLEN = 1024
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"


def say(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dynslice", type=pathlib.Path, required=True)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--text", type=pathlib.Path, required=True)
    parser.add_argument("--llama", type=pathlib.Path, required=True)
    parser.add_argument("--python", type=pathlib.Path, required=True)
    parser.add_argument("--slicegpt", type=pathlib.Path)
    parser.add_argument("--slicegpt-python", type=pathlib.Path)
    parser.add_argument("--only", default="slice,eval,score,decode")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--update-docs", type=pathlib.Path)
    args = parser.parse_args()
    unknown = set(args.only.split(",")) - {"slice", "eval", "score", "decode"}
    if unknown or min(args.repeats, args.windows, args.threads) < 1:
        parser.error("--only takes slice, eval, score, decode; the counts must be at least 1")
    return args


class Failure(Exception):
    """A program that did not end well."""


def run(command, threads):
    """Runs a program to its end: its output, wall and CPU seconds, and peak memory, as the kernel counts them."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive",
                   "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [str(part) for part in command]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        stdout, stderr = out.read().decode(), err.read().decode(errors="replace")
    if process.returncode != 0:
        raise Failure(f"{' '.join(command)}: exit code {process.returncode}\n{stderr[-1500:]}")
    return {"stdout": stdout, "stderr": stderr, "wall_seconds": seconds,
            "cpu_seconds": usage.ru_utime + usage.ru_stime, "peak_rss_bytes": usage.ru_maxrss * 1024}


class Bench:
    def __init__(self, args, folder):
        self.args, self.folder = args, folder

    def dynslice(self, verb, model, *options):
        result = run([self.args.dynslice, verb, model, *options, "--threads", self.args.threads, "-q", "--json"],
                     self.args.threads)
        return {**result, "json": json.loads(result["stdout"])}

    def rounds(self, contestants):
        """{name: [figures of every round]}: everything runs once a round, so that the machine's moods meet all."""
        figures = {name: [] for name in contestants}
        for repeat in range(self.args.repeats):
            for name, contestant in contestants.items():
                say(f"round {repeat + 1} of {self.args.repeats}: {name}")
                figures[name].append(contestant())
        return figures

    def slice(self):
        args = self.args
        outputs = {dtype: self.folder / f"sliced-{dtype}" for dtype in ("fp32", "bf16")}
        half, width = {}, {}

        def ours(dtype):
            result = self.dynslice("slice", args.model, "--avg", "25%", "--allocate", "constant", "--calib",
                                   "wikitext2:test", "--samples", args.windows, "--seqlen", SEQLEN, "--dtype", dtype,
                                   "--out-dtype", "fp32", "-o", outputs[dtype], "--force")
            half["tokens"] = result["json"]["calibration"]["stream_tokens"] // 2
            width["kept"] = result["json"]["plan"]["dims"][0]
            return {"slice_seconds": result["json"]["wall_seconds"], **figures_of(result)}

        def theirs():
            command = [args.slicegpt_python or args.python, HERE / "bench_slicegpt.py", "--slicegpt", args.slicegpt,
                       "--model", args.model, "--text", args.text, "--samples", args.windows, "--seqlen", SEQLEN,
                       "--width", width["kept"]]
            result = run(command, args.threads)
            report = json.loads(result["stdout"].splitlines()[-1])
            return {"slice_seconds": report["slice_seconds"], **figures_of(result)}

        contestants = {"dynslice slice, fp32": lambda: ours("fp32"), "dynslice slice, bf16": lambda: ours("bf16")}
        if args.slicegpt:
            contestants["published SliceGPT, fp32"] = theirs
        else:
            say("the published SliceGPT is left out: no --slicegpt")
        figures = self.rounds(contestants)
        perplexity = {}
        for dtype, output in outputs.items():
            text = self.dynslice("eval", output, "--ppl", "wikitext2", "--ppl-range", f"{half['tokens']}:", "--samples",
                                 args.windows, "--seqlen", SEQLEN)
            perplexity[f"dynslice slice, {dtype}"] = text["json"]["perplexity"]["wikitext2"]["value"]
        return {"rounds": figures, "perplexity": perplexity}

    def eval(self):
        args, windows = self.args, max(1, self.args.windows // 4)

        def ours(dtype):
            result = self.dynslice("eval", args.model, "--ppl", "wikitext2", "--samples", windows, "--seqlen", SEQLEN,
                                   "--dtype", dtype)
            return {"tokens_per_second": result["json"]["tokens_per_second"],
                    "perplexity": result["json"]["perplexity"]["wikitext2"]["value"], **figures_of(result)}

        def transformers(dtype):
            result = run([args.python, HERE / "bench_transformers.py", "--model", args.model, "--text", args.text,
                          "--samples", windows, "--seqlen", SEQLEN, "--dtype", dtype], args.threads)
            report = json.loads(result["stdout"].splitlines()[-1])
            return {"tokens_per_second": report["tokens_per_second"], "perplexity": report["perplexity"],
                    **figures_of(result)}

        def llama(kind):
            gguf = self.folder / f"{kind}.gguf"
            if not gguf.exists():
                run([args.llama / "llama-quantize", "--allow-requantize", args.model, gguf, kind], args.threads)
            result = run([args.llama / "llama-perplexity", "-m", gguf, "-f", args.text, "-c", SEQLEN, "-b", SEQLEN, "-ub",
                          SEQLEN, "--chunks", windows, "-t", args.threads], args.threads)
            output = result["stdout"] + result["stderr"]
            speed = re.search(r"prompt eval time =.*?([0-9.]+) tokens per second", output)
            if speed is not None:
                return {"tokens_per_second": float(speed.group(1)), **figures_of(result)}
            # Newer versions stamp lines with minutes.seconds.milliseconds.microseconds instead.
            begin, end = (re.search(rf"(\d+)\.(\d\d)\.(\d{{3}})\.(\d{{3}}) I {line}", output)
                          for line in ("perplexity: calculating", "Final estimate"))
            if begin is None or end is None:
                raise Failure("llama-perplexity printed no speed:\n" + output[-1500:])
            seconds = [sum(float(part) * unit for part, unit in zip(stamp.groups(), (60, 1, 1e-3, 1e-6)))
                       for stamp in (begin, end)]
            return {"tokens_per_second": windows * SEQLEN / (seconds[1] - seconds[0]), **figures_of(result)}

        contestants = {}
        for dtype, kind in (("fp32", "F32"), ("bf16", "BF16")):
            contestants[f"dynslice eval, {dtype}"] = lambda dtype=dtype: ours(dtype)
            if args.python.exists():
                contestants[f"transformers, {dtype}"] = lambda dtype=dtype: transformers(dtype)
            if (args.llama / "llama-perplexity").exists():
                contestants[f"llama-perplexity, {kind}"] = lambda kind=kind: llama(kind)
        for peer, there in (("transformers", args.python.exists()),
                            ("llama-perplexity", (args.llama / "llama-perplexity").exists())):
            if not there:
                say(f"{peer} is left out: it is not installed (tools/setup.sh --tests)")
        return {"rounds": self.rounds(contestants)}

    def score(self):
        few = max(1, self.args.windows // 4)

        def score(windows):
            return self.dynslice("score", self.args.model, "--calib", "wikitext2:test", "--samples", windows, "--seqlen",
                                 SEQLEN)["wall_seconds"]

        def marginal():
            # What is not done once a window (loading, tokenizing) falls out of the difference.
            return {"seconds": score(3 * few) / 2 - score(few) / 2}

        def forward():
            speed = self.dynslice("bench", self.args.model, "--prompt-tokens", SEQLEN, "--decode-tokens", 0, "--batch",
                                  min(2, few), "--repeats", 3)["json"]["prefill"]["tokens_per_second"]
            return {"seconds": few * SEQLEN / speed}

        return {"rounds": self.rounds({"dynslice score": marginal, "plain forward": forward})}

    def decode(self):
        sliced = {}
        for dtype in ("fp32", "bf16"):
            sliced[dtype] = self.folder / f"smaller-{dtype}"
            self.dynslice("slice", self.args.model, "--target", "params=25%", "--allocate", "constant", "--calib",
                          "wikitext2:test", "--samples", 4, "--seqlen", 256, "--out-dtype", dtype, "-o", sliced[dtype], "--force")

        def measure(dtype):
            report = self.dynslice("bench", sliced[dtype], "--against", self.args.model, "--dtype", dtype, "--repeats",
                                   3)["json"]
            return {"prefill": report["prefill"]["tokens_per_second"], "decode": report["decode"]["tokens_per_second"],
                    "dense_prefill": report["against"]["prefill"]["tokens_per_second"],
                    "dense_decode": report["against"]["decode"]["tokens_per_second"],
                    "parameters": report["parameters"] / report["against"]["parameters"],
                    "weight_bytes": report["weight_bytes"] / report["against"]["weight_bytes"]}

        return {"rounds": self.rounds({dtype: lambda dtype=dtype: measure(dtype) for dtype in sliced})}


def figures_of(result):
    return {key: result[key] for key in ("wall_seconds", "cpu_seconds", "peak_rss_bytes")}


def median(rounds, key):
    return statistics.median(one[key] for one in rounds)


def table(header, rows):
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def slice_table(results):
    rounds, rows = results["rounds"], []
    reference = rounds.get("published SliceGPT, fp32")
    for name, values in rounds.items():
        ratio = f"{median(reference, 'slice_seconds') / median(values, 'slice_seconds'):.2f}" if reference else "–"
        perplexity = results["perplexity"].get(name)
        rows.append([name, f"{median(values, 'slice_seconds'):.1f}", f"{median(values, 'wall_seconds'):.1f}",
                     f"{median(values, 'peak_rss_bytes') / 1e9:.2f}", ratio,
                     f"{perplexity:.3f}" if perplexity else "–"])
    return table(["slice", "s, slicing", "s, process", "peak GB", "times faster", "perplexity"], rows)


def eval_table(results):
    rounds, rows = results["rounds"], []
    for name, values in rounds.items():
        dtype = name.split(", ")[1].lower().replace("f32", "fp32").replace("bfp32", "bf16")
        ours = rounds[f"dynslice eval, {'bf16' if dtype.startswith('b') else 'fp32'}"]
        ratio = median(ours, "tokens_per_second") / median(values, "tokens_per_second")
        rows.append([name, f"{median(values, 'tokens_per_second'):.0f}", f"{median(values, 'wall_seconds'):.1f}",
                     f"{median(values, 'cpu_seconds'):.1f}", f"{median(values, 'peak_rss_bytes') / 1e9:.2f}",
                     f"{ratio:.2f}"])
    return table(["eval", "tokens/s", "s, process", "s, CPU", "peak GB", "dynslice's tokens/s to its"], rows)


def score_table(results):
    rounds = results["rounds"]
    forward = median(rounds["plain forward"], "seconds")
    rows = [[name, f"{median(values, 'seconds'):.2f}", f"{median(values, 'seconds') / forward:.2f}"]
            for name, values in rounds.items()]
    return table(["score", "s", "to the plain forward"], rows)


def decode_table(results):
    rows = []
    for dtype, values in results["rounds"].items():
        rows.append([dtype, f"{100 * (1 - median(values, 'parameters')):.1f} %",
                     f"{100 * (1 - median(values, 'weight_bytes')):.1f} %"])
        for key in ("prefill", "decode"):
            dense, sliced = median(values, "dense_" + key), median(values, key)
            rows[-1] += [f"{dense:.1f}", f"{sliced:.1f}", f"{sliced / dense:.2f}"]
    return table(["sliced", "parameters less", "bytes less", "prefill dense", "sliced", "ratio", "decode dense", "sliced",
                  "ratio"], rows)


def machine(args):
    info = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8")
    name = re.search(r"model name\s*: (.*)", info)
    return {"processor": name.group(1).strip() if name else "unknown", "cores": os.cpu_count(), "threads": args.threads,
            "avx512_bf16": "avx512_bf16" in info, "amx_bf16": "amx_bf16" in info,
            "load_average": os.getloadavg()[0], "date": time.strftime("%Y-%m-%d")}


def gemm_of(args):
    result = run([args.dynslice, "bench", "--gemm", "--threads", args.threads, "--json"], args.threads)
    return json.loads(result["stdout"])["gemm"]


def describe(results):
    m, gemm = results["machine"], results["gemm"]
    peaks = ", ".join(f"{dtype} {gemm[dtype]['gflops']:.0f} ({gemm[dtype]['library']})" for dtype in gemm)
    extra = " with AVX512_BF16" if m["avx512_bf16"] else ""
    noise = "" if m["load_average"] < 0.5 else \
        f" The machine was not idle (load {m['load_average']:.1f}): read ratios, not absolute figures."
    return (f"{m['date']}, {m['processor']}, {m['cores']} cores{extra}, {m['threads']} threads, medians of "
            f"{results['repeats']} round(s); {results['model']}, {results['windows']} calibration windows of {SEQLEN} "
            f"tokens. GEMM peak in GFLOP/s: {peaks}.{noise}")


def update_docs(path, markdown):
    text = path.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise Failure(f"{path}: must hold {BEGIN} and {END} once each")
    before, rest = text.split(BEGIN)
    path.write_text(before + BEGIN + "\n" + markdown + "\n" + END + rest.split(END)[1], encoding="utf-8")


def main():
    args = parse_arguments()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="dynslice-bench-"))
    try:
        bench = Bench(args, folder)
        results = {"machine": machine(args), "gemm": gemm_of(args), "model": args.model.name, "repeats": args.repeats,
                   "windows": args.windows}
        tables = {"slice": slice_table, "eval": eval_table, "score": score_table, "decode": decode_table}
        parts = [describe(results)]
        failed = False
        for name in tables:
            if name not in args.only.split(","):
                continue
            try:
                results[name] = getattr(bench, name)()
                parts.append(tables[name](results[name]))
            except Failure as failure:  # what the other parts took half an hour for is not lost
                say(f"error: {name}: {failure}")
                failed = True
        markdown = "\n\n".join(parts)
        print(markdown)
        if args.json:
            args.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        if args.update_docs and not failed:
            update_docs(args.update_docs, markdown)
        return int(failed)
    except Failure as failure:
        say(f"error: {failure}")
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
