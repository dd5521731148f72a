#!/usr/bin/env python3
"""Runs the published SliceGPT procedure on a model and tokens of ours, and says how long it took.

The procedure is imported from a checkout of the public repository (github.com/microsoft/TransformerCompression),
which is no part of dynslice; this file only feeds it. It was written for transformers 4.41; what has changed since is
adapted here, none of which costs time: an inert stand-in for packages that only its command line needs, layers that
take the rotary embedding as an argument, and no look at the call stack for a log line, which with today's transformers
would take longer than the slicing of a small model. Prints one JSON object.
"""
import argparse
import importlib.machinery
import json
import pathlib
import resource
import sys
import time
import types


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slicegpt", required=True, type=pathlib.Path, help="the checkout's folder")
    parser.add_argument("--model", required=True, type=pathlib.Path, help="a .gguf file or a folder, llama architecture")
    parser.add_argument("--text", required=True, type=pathlib.Path, help="wiki.test.raw")
    parser.add_argument("--samples", type=int, default=32, help="calibration windows (default 32)")
    parser.add_argument("--seqlen", type=int, default=1024, help="tokens a window (default 1024)")
    parser.add_argument("--width", type=int, default=432, help="new embedding dimension (default 432)")
    parser.add_argument("--batch", type=int, default=1, help="windows a batch (default 1, the procedure's own: 16)")
    parser.add_argument("--eval-samples", type=int, default=0, help="windows of the second half to evaluate (default 0)")
    args = parser.parse_args()
    if not (args.slicegpt / "src" / "slicegpt" / "rotate.py").is_file():
        parser.exit(4, f"bench_slicegpt: error: {args.slicegpt} is no checkout of TransformerCompression: "
                       "src/slicegpt/rotate.py is not there\n")
    return args


def stand_in(name, **attributes):
    """A module that can be imported and does nothing, for packages that are not installed."""
    try:
        __import__(name)
    except ImportError:
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        module.__dict__.update(attributes)
        sys.modules[name] = module


class ConfigDict(dict):
    """As much of ml_collections' as the procedure's settings need."""

    def __getattr__(self, key):
        return self[key]

    def __setattr__(self, key, value):
        self[key] = value


def import_slicegpt(folder):
    """The modules of the procedure alone: its package would also import adapters of other architectures."""
    stand_in("ml_collections", ConfigDict=ConfigDict)
    stand_in("tqdm", tqdm=lambda items, **_: items)
    stand_in("datasets", Dataset=object)
    package = types.ModuleType("slicegpt")
    package.__path__ = [str(folder / "src" / "slicegpt")]
    sys.modules["slicegpt"] = package
    from slicegpt import config, layernorm_fusion, rotate, slicing_scheduler, utils
    from slicegpt.adapters import llama_adapter

    def no_stack():
        raise ValueError  # which the caller expects, and goes on without

    utils.inspect = types.SimpleNamespace(stack=no_stack)
    return config.config, layernorm_fusion, rotate, slicing_scheduler, llama_adapter


def load_model(path):
    import torch
    import transformers

    folder, file = (path.parent, {"gguf_file": path.name}) if path.is_file() else (path, {})
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **file)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **file)
    return model.eval(), tokenizer


def windows_of(tokenizer, text, args):
    """Calibration windows from the first half of the text's tokens, evaluation windows from the second."""
    import torch

    lines = text.read_text(encoding="utf-8").splitlines(keepends=True)
    tokens = tokenizer("\n\n".join("" if line.isspace() else line for line in lines), return_tensors="pt",
                       add_special_tokens=False).input_ids[0]
    half = len(tokens) // 2

    def cut(part, count):
        if len(part) < count * args.seqlen:
            sys.exit(f"bench_slicegpt: half of {text} has {len(part)} tokens; {count} windows of {args.seqlen} need "
                     f"{count * args.seqlen}: give fewer of them")
        whole = part[: count * args.seqlen].view(-1, args.seqlen) if count else torch.empty(0, args.seqlen)
        return whole

    return cut(tokens[:half], args.samples), cut(tokens[half:], args.eval_samples)


def compressed_layer(base):
    """The procedure's layer for a transformers whose decoder layers return the stream itself, not a tuple."""

    class Layer(base):
        def forward(self, hidden_states, attention_mask=None, position_ids=None, past_key_values=None, use_cache=False,
                    position_embeddings=None, **kwargs):
            def residual_path(residual, shortcut):
                return residual if shortcut is None else residual @ shortcut

            branch, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), attention_mask=attention_mask,
                                       position_ids=position_ids, position_embeddings=position_embeddings, **kwargs)
            middle = residual_path(hidden_states, self.attn_shortcut_Q) + branch
            branch = self.mlp(self.post_attention_layernorm(middle))
            return residual_path(middle, self.mlp_shortcut_Q) + branch

    return Layer


def main():
    args = parse_arguments()
    started = time.perf_counter()
    import torch

    config, layernorm_fusion, rotate, slicing_scheduler, llama_adapter = import_slicegpt(args.slicegpt)
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    config.device, config.dtype = torch.device("cpu"), torch.float32
    model, tokenizer = load_model(args.model)
    calibration, evaluation = windows_of(tokenizer, args.text, args)
    model.config.use_cache = False

    class Adapter(llama_adapter.LlamaModelAdapter):
        @property
        def compressed_layer_type(self):
            return compressed_layer(LlamaDecoderLayer)

        def convert_layer_to_compressed(self, layer, layer_idx):
            compressed = self.compressed_layer_type(self.config, layer_idx).to(torch.float32)
            compressed.load_state_dict(layer.state_dict(), strict=True)
            return compressed

    adapter = Adapter(model)
    layernorm_fusion.replace_layers(adapter)
    layernorm_fusion.fuse_modules(adapter)
    batches = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in calibration.split(args.batch)]
    before = time.perf_counter()
    rotate.rotate_and_slice(adapter, batches, slicing_scheduler.ConstSlicingScheduler(args.width))
    sliced = time.perf_counter()
    result = {"slice_seconds": sliced - before, "total_seconds": sliced - started,
              "tokens": calibration.numel(), "width": args.width, "threads": torch.get_num_threads(),
              "torch": torch.__version__, "transformers": __import__("transformers").__version__,
              "parameters": sum(p.numel() for p in model.parameters()),
              "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    if args.eval_samples:
        with torch.no_grad():
            losses = [torch.nn.functional.cross_entropy(model(ids[None]).logits[0, :-1].double(), ids[1:]).item()
                      for ids in evaluation]
        result["perplexity"] = float(torch.tensor(losses).double().mean().exp())
    print(json.dumps(result))


if __name__ == "__main__":
    main()
