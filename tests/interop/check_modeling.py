"""Loads sliced checkpoints with whatever transformers is first on the path, and says how they behave.

usage: check_modeling.py JOBS.json RESULT.json, JOBS a list of {"folder": ..., "ids": [...], "logits": FILE or null}
where FILE holds the expected logits (raw float32 [tokens, vocabulary]). The test in test_modeling.py judges.
"""

import json
import pathlib
import shutil
import sys
import tempfile

import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

NEW_TOKENS = 8


def load(folder, attention):
    options = {"trust_remote_code": True, "attn_implementation": attention, "dtype": torch.float32}
    model, info = AutoModelForCausalLM.from_pretrained(folder, **options, output_loading_info=True)
    problems = [f"{kind}: {sorted(map(str, info[kind]))}" for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[kind]]
    assert not problems, problems
    return model.eval()


def logits(model, ids, **options):
    return model(torch.tensor([ids]), **options).logits[0]


def distance(a, b):
    return (a - b).abs().max().item()


def greedy(model, ids, steps):
    """Without a cache, and without generate()."""
    ids = list(ids)
    for _ in range(steps):
        ids.append(logits(model, ids, use_cache=False)[-1].argmax().item())
    return ids


def check_generation(model, ids):
    prompt = ids[:20]
    expected = greedy(model, prompt, NEW_TOKENS)
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 0}
    made = {
        "cache": model.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, 20, dtype=torch.long), **options),
        "no cache": model.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, 20, dtype=torch.long), use_cache=False, **options),
        "static cache": model.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, 20, dtype=torch.long), cache_implementation="static",
                                       disable_compile=True, **options),
    }  # fmt: skip
    # A batch of two prompts, the shorter padded on the left.
    short = ids[3:14]
    padded = torch.tensor([prompt, [0] * (20 - len(short)) + short])
    mask = torch.tensor([[1] * 20, [0] * (20 - len(short)) + [1] * len(short)])
    both = model.generate(padded, attention_mask=mask, **options)
    made["batch, long"] = both[:1]
    found = {name: tokens[0].tolist() == expected for name, tokens in made.items()}
    found["batch, padded"] = both[1, 20 - len(short) :].tolist() == greedy(model, short, NEW_TOKENS)
    return found


def check_padding(model, ids):
    """A window padded on the left has the logits that it has alone."""
    pad = 7
    padded = torch.tensor([[5] * pad + ids])
    mask = torch.tensor([[0] * pad + [1] * len(ids)])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    return distance(model(padded, attention_mask=mask, position_ids=positions).logits[0, pad:], logits(model, ids))


def check_training(model, ids):
    """The loss is the mean negative log-likelihood, with and without gradient checkpointing, and reaches every weight."""
    tokens = torch.tensor([ids])
    with torch.enable_grad():
        plain = model(tokens, labels=tokens).loss
        plain.backward()
        reached = all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
        model.zero_grad()
        model.gradient_checkpointing_enable()
        again = model.train()(tokens, labels=tokens, use_cache=False).loss
        model.gradient_checkpointing_disable()
        model.eval()
    expected = torch.nn.functional.cross_entropy(logits(model, ids)[:-1], tokens[0, 1:])
    return {"reached": reached, "loss": abs(plain.item() - expected.item()), "checkpointed": abs(plain.item() - again.item())}


def check_round_trip(model, ids, keep):
    """What save_pretrained writes is loaded again by itself, code included. `keep`: a folder to leave it in."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(keep or scratch) / "saved"
        model.save_pretrained(folder)
        files = sorted(path.name for path in folder.iterdir())
        again = load(folder, "sdpa")
        names = set(load_file(folder / "model.safetensors"))
        tied = model.config.tie_word_embeddings
        return {
            "equal": torch.equal(logits(again, ids), logits(model, ids)),
            "code": {"configuration_dynslice.py", "modeling_dynslice.py"} <= set(files),
            "head stored": "lm_head.weight" in names,
            "tied": again.lm_head.weight.data_ptr() == again.model.embed_tokens.weight.data_ptr(),
            "tied in config": AutoConfig.from_pretrained(folder, trust_remote_code=True).tie_word_embeddings == tied,
        }


def check(job):
    folder, ids = job["folder"], job["ids"]
    model = load(folder, "sdpa")
    eager = load(folder, "eager")
    found = {"tied": model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()}
    sdpa_logits = logits(model, ids)
    if job.get("logits"):
        expected = torch.frombuffer(bytearray(pathlib.Path(job["logits"]).read_bytes()), dtype=torch.float32).view(len(ids), -1)
        found["sdpa"] = distance(sdpa_logits, expected)
        found["eager"] = distance(logits(eager, ids), expected)
        found["scale"] = expected.abs().max().item()
    found["generation"] = check_generation(model, ids)
    found["padding"] = max(check_padding(model, ids), check_padding(eager, ids))
    full = eager(torch.tensor([ids]), output_hidden_states=True, output_attentions=True)
    found["states"] = [state.shape[-1] for state in full.hidden_states]
    found["attentions"] = [list(weights.shape) for weights in full.attentions]
    found["kept"] = distance(logits(model, ids, logits_to_keep=3), sdpa_logits[-3:])
    found["tuple"] = torch.equal(model(torch.tensor([ids]), return_dict=False)[0][0], sdpa_logits)
    embedded = model.get_input_embeddings()(torch.tensor([ids]))
    found["embeds"] = distance(model(inputs_embeds=embedded).logits[0], sdpa_logits)
    found["round trip"] = check_round_trip(model, ids, job.get("keep"))
    found["training"] = check_training(model, ids)
    return found


def main(jobs_file, result_file):
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    jobs = json.loads(pathlib.Path(jobs_file).read_text())
    results = {"transformers": transformers.__version__, "results": [check(job) for job in jobs]}
    pathlib.Path(result_file).write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
