"""gemma-3-270m, whole, with its vocabulary of 262,144 entries: figures of transformers 5.24 on the file as it dequantizes it."""

import pytest
from test_export import llama_cpp_perplexity

# transformers in fp32 on tokens 160000:162048 of wikitext-2 test (BOS is token 0) in windows of 512; greedy tokens after a prompt.
PERPLEXITY = 69.48151
PROMPT = "The capital of France is"
PROMPT_IDS = [2, 818, 5279, 529, 7001, 563]
GREEDY = [
    506, 5279, 529, 506, 2891, 529, 7001, 236761, 1030, 563, 506, 7488, 3207, 528, 7001, 532, 506, 1855, 7488, 3207, 528, 3879, 236761,
    1030, 563, 5628, 528, 506, 6029, 529, 506, 2891, 532, 563, 506, 5279, 529, 506, 4128, 529, 506, 1638, 1463, 236761, 1030, 563, 506,
    7488, 3207, 528,
]  # fmt: skip


@pytest.mark.usefixtures("data_dir")
def test_perplexity_is_transformers(run, gemma):
    shown = run("eval", gemma, "--ppl", "wikitext2", "--ppl-range", "160000:162048", "--seqlen", "512", "--json").json()
    assert shown["perplexity"]["wikitext2"]["value"] == pytest.approx(PERPLEXITY, rel=1e-4)


def test_50_greedy_tokens_are_transformers(run, gemma):
    shown = run("generate", gemma, "--prompt", PROMPT, "--max-tokens", "50", "--json").json()
    assert shown["prompt_ids"] == PROMPT_IDS and shown["ids"] == GREEDY


def test_llama_cpp_has_the_same_perplexity_on_the_exported_file(run, run_command, gemma, data_dir, tmp_path, llama_perplexity):
    text = tmp_path / "text.txt"
    text.write_text((data_dir / "wikitext-2-raw" / "wiki.test.raw").read_text(encoding="utf-8")[:6000], encoding="utf-8")
    run("export", gemma, "--gguf", "--type", "q8_0", "-o", tmp_path / "m.gguf")
    ours = run("eval", tmp_path / "m.gguf", "--ppl", text, "--protocol", "llamacpp", "--samples", "2", "--seqlen", "512", "--json").json()
    theirs = llama_cpp_perplexity(run_command, llama_perplexity, tmp_path / "m.gguf", text, 2, 512)
    assert ours["perplexity"]["text.txt"]["value"] == pytest.approx(theirs, rel=5e-3)
