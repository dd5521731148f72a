#!/usr/bin/env python3
"""Perplexity of a model by transformers, one window at a time, and how fast that was. Prints one JSON object."""
import argparse
import json
import pathlib
import resource
import sys
import time


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, type=pathlib.Path, help="a .gguf file or a folder")
    parser.add_argument("--text", required=True, type=pathlib.Path, help="wiki.test.raw")
    parser.add_argument("--samples", type=int, default=8, help="windows (default 8)")
    parser.add_argument("--seqlen", type=int, default=1024, help="tokens a window (default 1024)")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    return parser.parse_args()


def main():
    args = parse_arguments()
    import torch
    import transformers

    folder, file = (args.model.parent, {"gguf_file": args.model.name}) if args.model.is_file() else (args.model, {})
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **file)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[args.dtype]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **file).eval()
    lines = args.text.read_text(encoding="utf-8").splitlines(keepends=True)
    tokens = tokenizer("\n\n".join("" if line.isspace() else line for line in lines), return_tensors="pt",
                       add_special_tokens=False).input_ids[0]
    if len(tokens) < args.samples * args.seqlen:
        sys.exit(f"bench_transformers: {args.text} has {len(tokens)} tokens; {args.samples} windows of {args.seqlen} need "
                 f"{args.samples * args.seqlen}: give fewer --samples")
    windows = tokens[: args.samples * args.seqlen].view(-1, args.seqlen)
    with torch.inference_mode():
        model(windows[:1, :64])  # warm-up: code and pages
        started = time.perf_counter()
        losses = [torch.nn.functional.cross_entropy(model(ids[None], use_cache=False).logits[0, :-1].float(), ids[1:])
                  for ids in windows]
        seconds = time.perf_counter() - started
    print(json.dumps({"tokens_per_second": windows.numel() / seconds, "seconds": seconds, "tokens": windows.numel(),
                      "perplexity": float(torch.stack(losses).double().mean().exp()), "dtype": args.dtype,
                      "threads": torch.get_num_threads(), "transformers": transformers.__version__,
                      "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


if __name__ == "__main__":
    main()
