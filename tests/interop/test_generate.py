"""Greedy text is that of transformers' generate, token by token."""
import pytest
import torch
import transformers

PROMPTS = ["The city of", "A naïve approach, in Zürich:\n"]
END = 2  # <|im_end|>: what the real model's file says, and transformers' tokenizer of it does not


def continued(model, ids, count, **options):
    ids = torch.tensor([ids])
    with torch.inference_mode():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=count,
                             pad_token_id=0, **options)
    return out[0, ids.shape[1]:].tolist()


def theirs(model, tokenizer, prompt, count, **options):
    return continued(model, tokenizer(prompt).input_ids, count, **options)


def ours(run, model, prompt, count, *options):
    return run("generate", model, "--prompt", prompt, "--max-tokens", count, "--json", *options).json()


@pytest.fixture(scope="module")
def real(dequantized):
    """The real model and its tokenizer in transformers."""
    network = transformers.AutoModelForCausalLM.from_pretrained(dequantized, dtype=torch.float32)
    return network.eval(), transformers.AutoTokenizer.from_pretrained(dequantized)


@pytest.mark.parametrize("prompt, count", zip(PROMPTS, (48, 24)))
def test_tokens_of_the_real_model_are_transformers(real, run, model, prompt, count):
    dense, tokenizer = real
    expected = theirs(dense, tokenizer, prompt, count, eos_token_id=END)
    result = ours(run, model, prompt, count)
    assert result["ids"] == expected
    assert result["text"] == tokenizer.decode(expected, skip_special_tokens=True)
    assert result["finish_reason"] == ("length" if len(expected) == count else "end")


def test_an_answer_of_the_real_model_is_transformers(real, run, model):
    dense, tokenizer = real
    system, question = "Be brief.", "What is the capital of Switzerland?"
    messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    expected = continued(dense, ids, 200, eos_token_id=END)
    result = ours(run, model, question, 200, "--chat", "--system", system)
    assert result["prompt"] == tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert result["prompt_ids"] == ids
    assert result["ids"] == expected and result["finish_reason"] == "end"
    assert result["text"] == tokenizer.decode(expected, skip_special_tokens=True)


@pytest.mark.parametrize("family, options", [
    ("llama", {}),
    ("llama", {"tie_word_embeddings": True, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    ("mistral", {"sliding_window": 32}),
    ("qwen2", {}),
    ("qwen3", {}),
    ("gemma3_text", {}),
    ("smollm3", {}),
    ("seed_oss", {}),
    ("gemma2", {}),
    ("ministral3", {}),
    ("olmo2", {}),
    ("olmo3", {}),
    ("granite", {}),
    ("exaone4", {}),
    ("hunyuan_v1_dense", {}),
    ("phi3", {}),
    ("glm4", {}),
    ("opt", {}),
    ("qwen3_5_text", {}),
    ("gemma4_text", {}),
])
def test_200_tokens_of_tiny_models_are_transformers(run, tiny_model, tiny_tokenizer, family, options):
    folder = tiny_model(family, **options)
    dense = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    for prompt in PROMPTS:
        expected = theirs(dense, tiny_tokenizer, prompt, 200)
        assert ours(run, folder, prompt, 200)["ids"] == expected


def test_a_sliced_model_writes_what_its_modeling_code_writes(run, tiny_model, tiny_tokenizer, text_file, tmp_path):
    run("slice", tiny_model("llama"), "--avg", "25%", "--allocate", "constant", "--calib", text_file, "--samples", 4, "--seqlen", 64,
        "-o", tmp_path / "sliced")
    sliced = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "sliced", dtype=torch.float32, trust_remote_code=True)
    for prompt in PROMPTS:
        assert ours(run, tmp_path / "sliced", prompt, 100)["ids"] == theirs(sliced, tiny_tokenizer, prompt, 100)
