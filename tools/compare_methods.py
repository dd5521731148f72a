#!/usr/bin/env python3
"""Makes a model smaller by every way of dynslice at equal parameters, and tabulates perplexity and tokens a second.

The split is that of docs/methods.md unless options say otherwise: calibration on the first half of WikiText-2's test
split (32 windows of 1024 tokens), healing on its validation split, perplexity on windows of the second half. Every model
is kept in WORK, and what is measured there is not measured again: a run that was stopped goes on. Folders of models may
be deleted; their figures stay.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]

# The texts of docs/methods.md, and what an option of the same name replaces.
TEXTS = {"calib": "wikitext2:test", "calib_range": "0:152493", "ppl": "wikitext2:test", "ppl_range": "152493:185261",
         "heal_text": "wikitext2:validation", "seqlen": 1024}


def slice_by(*options):
    """A step: width by `slice`, down to the parameters that are asked for."""
    return lambda target, source: ["slice", "--target", f"params={target.share_of(source):.6f}", *options]


def streamline(*options, part=1.0):
    """A step: depth by `depth streamline`, `part` of what is to go."""
    return lambda target, source: ["depth", "streamline", "--layers", target.layers(source, part), *options]


def merge(part=1.0):
    def step(target, source):
        layers = source["layers"] - target.layers(source, part)
        return ["depth", "merge", "--target-layers", layers]

    return step


MODULAR = ["--method", "modular"]
METHODS = {
    "modular": [slice_by(*MODULAR)],
    "modular, search": [slice_by(*MODULAR, "--allocate", "search")],
    "modular, loss": [slice_by(*MODULAR, "--allocate", "loss")],
    "modular, neurons alone": [slice_by(*MODULAR, "--attention", "keep")],
    "modular, softmax": [slice_by(*MODULAR, "--allocate", "softmax")],
    "modular, lr": [slice_by(*MODULAR, "--allocate", "lr")],
    "modular, lr, base auto": [slice_by(*MODULAR, "--allocate", "lr", "--base", "auto")],
    "modular, constant": [slice_by(*MODULAR, "--allocate", "constant")],
    "modular, 64 windows": [slice_by(*MODULAR, "--samples", "64", "--gradient-samples", "16")],
    "best": [slice_by("--preset", "best")],
    "slice, constant": [slice_by("--allocate", "constant")],
    "slice, lr": [slice_by("--allocate", "lr")],
    "slice, lr, base auto": [slice_by("--allocate", "lr", "--base", "auto")],
    "slice, softmax": [slice_by("--allocate", "softmax")],
    "slice, spectrum": [slice_by("--allocate", "spectrum")],
    "slice, loss": [slice_by("--allocate", "loss")],
    "slice, blend": [slice_by("--allocate", "blend")],
    "slice, search": [slice_by("--allocate", "search")],
    "slice, constant, refitted": [slice_by("--allocate", "constant", "--refit", "all")],
    "slice, loss, refitted": [slice_by("--allocate", "loss", "--refit", "all")],
    "slice, softmax, refitted": [slice_by("--allocate", "softmax", "--refit", "all")],
    "slice, search, refitted": [slice_by("--allocate", "search", "--refit", "all")],
    "slice, one basis a layer": [slice_by("--allocate", "constant", "--basis", "layer")],
    "slice, one basis a layer, refitted": [slice_by("--allocate", "constant", "--basis", "layer", "--refit", "all")],
    "slice, one basis": [slice_by("--basis", "global")],
    "slice, one basis, not refitted": [slice_by("--basis", "global", "--refit", "none")],
    "slice, one basis, places weighed": [slice_by("--basis", "global", "--directions", "places")],
    "streamline, linear": [streamline("--replace", "linear")],
    "streamline, none": [streamline("--replace", "none")],
    "merge": [merge()],
    "streamline a third, then modular": [streamline("--replace", "linear", part=1 / 3), slice_by(*MODULAR)],
    "streamline half, then modular": [streamline("--replace", "linear", part=1 / 2), slice_by(*MODULAR)],
    "merge a third, then modular": [merge(part=1 / 3), slice_by(*MODULAR)],
}


class Target:
    """So many parameters."""

    def __init__(self, dense, share):
        self.dense = dense
        self.parameters = (1 - share) * dense["parameters"]

    def share_of(self, source):
        return max(0.0, 1 - self.parameters / source["parameters"])

    def layers(self, source, part):
        """As many layers of `source` as make up that part of what is to go."""
        one = layer_parameters(source)
        return max(1, round(part * (source["parameters"] - self.parameters) / one))


def layer_parameters(model):
    outside = model["vocab_size"] * model["hidden_size"] * (1 if model["tied_embeddings"] else 2)
    return (model["parameters"] - outside) / model["layers"]


def folder_name(method, share):
    return f"{method.replace(', ', '-').replace(' ', '-')}-{100 * share:g}"


class Bench:
    def __init__(self, arguments):
        self.arguments = arguments
        self.work = pathlib.Path(arguments.work)
        self.work.mkdir(parents=True, exist_ok=True)
        self.results_file = self.work / "results.json"
        kept = json.loads(self.results_file.read_text()) if self.results_file.exists() else {}
        texts = {name: getattr(arguments, name) for name in TEXTS}
        self.calibration = ["--calib", texts["calib"], "--calib-range", texts["calib_range"], "--seqlen", texts["seqlen"]]
        self.perplexity = ["--ppl", texts["ppl"], "--ppl-range", texts["ppl_range"], "--seqlen", texts["seqlen"]]
        self.healing = ["--text", texts["heal_text"], "--learning-rate", "4e-3"]
        self.made_with = {"model": str(pathlib.Path(arguments.model).resolve()), "updates": arguments.updates, "options": arguments.compute,
                          **{name: value for name, value in texts.items() if value != TEXTS[name]}}
        if kept and kept.get("made_with") != self.made_with:
            sys.exit(f"{self.results_file} was made with {kept.get('made_with')}, not with {self.made_with}; give another --work")
        self.results = kept.get("figures", {})
        self.dense = self.inspect(arguments.model)

    def run(self, *command):
        """The JSON that a command of dynslice prints."""
        words = [str(word) for word in (self.arguments.dynslice, *command, "--json", "-q", *self.arguments.compute)]
        done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_WAIT_POLICY": "passive"})
        if done.returncode != 0:
            sys.exit(f"{' '.join(words)}\n{done.stderr}")
        return json.loads(done.stdout)

    def inspect(self, model):
        words = [str(self.arguments.dynslice), "inspect", str(model), "--json"]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True)
        if done.returncode != 0:
            sys.exit(done.returncode)  # dynslice has said why
        return json.loads(done.stdout)

    def make(self, name, share, healed):
        """The folder of a model, which is made unless it is there."""
        folder = self.work / (folder_name(name, share) + ("-healed" if healed else ""))
        if folder.exists():
            return folder
        if healed:
            self.run("heal", *self.healing, self.make(name, share, False), "--updates", self.arguments.updates, "-o", folder, "--resume")
            return folder
        target, source = Target(self.dense, share), self.arguments.model
        steps = METHODS[name]
        for number, step in enumerate(steps):
            out = folder if number + 1 == len(steps) else self.work / f"{folder.name}-step-{number + 1}"
            if not out.exists():
                self.run(*step(target, self.inspect(source)), *self.calibration, source, "-o", out, "--resume")
            source = out
        return folder

    def measure(self, name, share, healed=False):
        key = f"{name} | {share} | {'healed' if healed else 'as it is'}"
        figures = self.results.setdefault(key, {})
        if "perplexity" not in figures or (self.arguments.speed and "speed" not in figures):
            model = self.make(name, share, healed) if share > 0 else self.arguments.model
            if "perplexity" not in figures:
                loss = self.run("eval", model, *self.perplexity)
                figures.update(perplexity=next(iter(loss["perplexity"].values()))["value"], parameters=self.inspect(model)["parameters"])
            if self.arguments.speed:
                figures["speed"] = self.speed(model)
            self.results_file.write_text(json.dumps({"made_with": self.made_with, "figures": self.results}, indent=1))
            print(key, figures, file=sys.stderr, flush=True)
        return figures

    def speed(self, model):
        """Tokens a second of writing, and of reading a prompt, in turns with the dense model: its own and the ratio."""
        rows = self.run("bench", model, self.arguments.model, "--prompt-tokens", 512, "--decode-tokens", 64)["models"]
        return {kind: [row[kind]["tokens_per_second"] for row in rows] for kind in ("prefill", "decode")}

    def drop_models(self, name, share):
        made = folder_name(name, share)
        for folder in (self.work / made, *self.work.glob(f"{made}-*")):
            shutil.rmtree(folder, ignore_errors=True)  # figures may be there without a model


def cell(figures):
    text = f"{figures['perplexity']:.1f}"
    if "speed" in figures:
        ours, dense = figures["speed"]["decode"]
        text += f" ({ours / dense:.2f}×)"
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder or a .gguf file")
    parser.add_argument("--dynslice", default=REPOSITORY / "build" / "bin" / "dynslice", help="the program")
    parser.add_argument("--work", required=True, help="folder for models and figures")
    parser.add_argument("--shares", default="15,25,35", help="percent of the parameters that are to go")
    parser.add_argument("--methods", default="all", help="some of: " + "; ".join(METHODS))
    parser.add_argument("--heal", action="store_true", help="also heal every model")
    parser.add_argument("--updates", type=int, default=24, help="of healing, of 8 windows each")
    parser.add_argument("--speed", action="store_true", help="also measure tokens a second beside the dense model; wants a calm machine")
    parser.add_argument("--drop-models", action="store_true", help="delete models when they are measured")
    for name, text in [("--calib", "text to calibrate on, as dynslice takes it"), ("--calib-range", "tokens of it"),
                       ("--ppl", "text to evaluate on"), ("--ppl-range", "tokens of it"), ("--heal-text", "text to heal on")]:
        parser.add_argument(name, default=TEXTS[name[2:].replace("-", "_")], help=f"{text} (default %(default)s)")
    parser.add_argument("--seqlen", type=int, default=TEXTS["seqlen"], help="tokens a window (default %(default)s)")
    parser.add_argument("compute", nargs="*", help="behind --: options for every command, such as --device cuda --dtype bf16")
    arguments = parser.parse_args()
    if not pathlib.Path(arguments.dynslice).exists():
        parser.exit(4, f"compare_methods: error: --dynslice {arguments.dynslice} is not there; run tools/setup.sh\n")
    names = list(METHODS) if arguments.methods == "all" else arguments.methods.split(";")
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        parser.error(f"no method {unknown[0]!r}; there are: {'; '.join(METHODS)}")
    shares = [float(percent) / 100 for percent in arguments.shares.split(",")]
    bench = Bench(arguments)
    rows = []
    for name in names:
        row = [name]
        for share in shares:
            cells = [cell(bench.measure(name, share))]
            if arguments.heal:
                cells.append(cell(bench.measure(name, share, healed=True)))
            row.append(" → ".join(cells) + f", {bench.measure(name, share)['parameters'] / 1e6:.1f} M")
            if arguments.drop_models:
                bench.drop_models(name, share)
        rows.append(row)
    print("| way | " + " | ".join(f"-{100 * share:g} %" for share in shares) + " |")
    print("|---" * (len(shares) + 1) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print(f"\nThe dense model: {cell(bench.measure('dense', 0))}, {bench.dense['parameters'] / 1e6:.1f} M.")


if __name__ == "__main__":
    main()
