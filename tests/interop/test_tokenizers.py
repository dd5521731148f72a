"""Our token ids against those of Hugging Face `tokenizers`, transformers and sentencepiece."""
import json
import random

import numpy as np
import pytest

LLAMA3_PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
                  r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2_PATTERN = LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")
TEKKEN_PATTERN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
                  r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
                  r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
# What tiktoken's users write; Ruby's syntax, which `tokenizers` speaks, reads {1,3}+ as a repeat.
O200K_PATTERN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
                 r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
                 r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")  # fmt: skip
SEED_PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+")
# DeepSeek-V3 cuts three times; Hunyuan does so too.
DEEPSEEK_PATTERNS = [r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+",
                     "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*"
                     "|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"]  # fmt: skip
POSSESSIVE_PATTERN = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
                      r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s")

FRAGMENTS = [
    b"", b" ", b"  ", b"     ", b"\n", b"\n\n\n", b"\r\n", b" \n \n", b"\t", b"\t\t x", b"\x0b\x0c", b"\x00", b"\x7f",
    b"Hello", b" world", b"don't", b"WE'LL", b"I\xe2\x80\x99ve", b"'\xc5\xbf", b"it's'S", b"1", b"12345678", b" 3.14", b"x86_64",
    "Ⅷ½²٣४".encode(), "naïve café Zürich".encode(), "e\u0301 n\u0303 A\u030a".encode(), "\u212b \u2126 \ufb01".encode(),
    "日本語テキスト".encode(), "中文，混合 English".encode(), "한국어".encode(), "\u1112\u1161\u11ab".encode(), "Привет, мир".encode(),
    "مرحبا بالعالم".encode(), "שלום".encode(), "नमस्ते".encode(), "ไทย".encode(), "😀".encode(), "👩‍👩‍👧‍👦".encode(),
    "🇩🇪🏳️‍🌈👍🏽".encode(), "\u00a0\u2003\u3000x".encode(), "\u180e \u200b\u2060\ufeff".encode(), "\u180e\u180e!".encode(), "\u0085\u2028\u2029".encode(),
    "▁".encode(), "▁▁ ▁a".encode(), " ▁ b".encode(), b"<s>", b"</s>", b"<s> hi</s> there", b"<unk>", b"<0x41>", b"<|special|>",
    b"  <|special|>  ", b"<|strip|>", b" <|strip|> y", b"new", b"renewed", b" new ", b"<|special", b"@-@ @,@ = = Title = =",
    b"!!!???...", b"{\"a\": [1, 2]}", b"    def f(x):\n        return x\n", b"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", b"$^+=|~`",
    b"\xff", b"\xc3", b"\xe2\x82", b"\xf0\x9f\x98", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80", b"ok\x80\x80ok", "\U0010ffff\ue000\ufffe".encode(),
]


def nasty_pages():
    """Every fragment alone, and long random mixtures of them."""
    chosen = random.Random(7)
    mixtures = [b"".join(chosen.choices(FRAGMENTS, k=length)) for length in [2] * 60 + [5] * 60 + [40] * 20 + [3000]]
    return FRAGMENTS + mixtures


@pytest.fixture(scope="module")
def pages(tmp_path_factory, data_dir):
    """Files with the nasty texts and the whole of wikitext-2 test, and their content as Python decodes it."""
    folder = tmp_path_factory.mktemp("pages")
    texts = nasty_pages() + [(data_dir / "wikitext-2-raw" / "wiki.test.raw").read_bytes()]
    files = []
    for i, text in enumerate(texts):
        files.append(folder / f"{i}.txt")
        files[-1].write_bytes(text)
    return files, [text.decode("utf-8", "replace") for text in texts]


@pytest.fixture(scope="module")
def our_ids(helper, run_command):
    """our_ids(checkpoint, files) -> the ids of each file."""
    def ids(checkpoint, files):
        lines = run_command([helper("tokenize_main"), checkpoint, *files]).stdout.split("\n")
        assert len(lines) == len(files) + 1
        return [[int(word) for word in line.split()] for line in lines[:-1]]
    return ids


@pytest.fixture(scope="module")
def training_texts(data_dir):
    """Prose, and the nasty texts often enough that words of strange characters are merged: only then do ids show
    where words were cut."""
    prose = (data_dir / "wikitext-2-raw" / "wiki.valid.raw").read_text(encoding="utf-8")[:300_000]
    return [prose] + [text.decode("utf-8", "replace") for text in nasty_pages()] * 5


def assert_same_ids(ours, theirs, texts):
    for found, expected, text in zip(ours, theirs, texts, strict=True):
        if found != expected:
            at = next((i for i, pair in enumerate(zip(found, expected)) if pair[0] != pair[1]), min(len(found), len(expected)))
            pytest.fail(f"{text[:60]!r}: ids differ from {at}: {found[max(0, at - 3):at + 5]}, expected {expected[max(0, at - 3):at + 5]}")


def assert_same_as_tokenizers(our_ids, pages, folder):
    from tokenizers import Tokenizer

    files, texts = pages
    reference = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert_same_ids(our_ids(folder, files), [reference.encode(text).ids for text in texts], texts)


# ---- sentencepiece ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama2(data_dir):
    return data_dir / "tokenizers" / "llama-2"


@pytest.fixture(scope="module")
def pieces(llama2):
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_file=str(llama2 / "tokenizer.model"))


def test_a_sentencepiece_model_gives_the_ids_of_sentencepiece(our_ids, pages, llama2, pieces):
    files, texts = pages
    # Text is never a special token to sentencepiece itself; that is Hugging Face's doing.
    chosen = [i for i, text in enumerate(texts) if not any(special in text for special in ("<s>", "</s>", "<unk>"))]
    assert len(chosen) > 120
    texts = [texts[i] for i in chosen]
    assert_same_ids(our_ids(llama2, [files[i] for i in chosen]), [[1, *pieces.encode(text)] for text in texts], texts)


def piece_types(pieces):
    return [2 if pieces.is_unknown(i) else 3 if pieces.is_control(i) else 6 if pieces.is_byte(i) else 1
            for i in range(pieces.vocab_size())]


def merges_of(pieces):
    """Every cut of a piece into two others, by falling score: what makes BPE with merges equal sentencepiece's."""
    vocab = {pieces.id_to_piece(i): i for i in range(pieces.vocab_size())}
    cuts = []
    for piece, i in vocab.items():
        if piece_types_normal(pieces, i):
            cuts += [(-pieces.get_score(i), vocab[piece[:at]], vocab[piece[at:]], piece[:at], piece[at:])
                     for at in range(1, len(piece)) if piece[:at] in vocab and piece[at:] in vocab]
    return vocab, [(left, right) for _, _, _, left, right in sorted(cuts)]


def piece_types_normal(pieces, i):
    return not (pieces.is_unknown(i) or pieces.is_control(i) or pieces.is_byte(i))


@pytest.fixture(scope="module")
def llama2_gguf(tmp_path_factory, pieces):
    import gguf

    path = tmp_path_factory.mktemp("gguf") / "llama-2.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    size = pieces.vocab_size()
    writer.add_tokenizer_model("llama")
    writer.add_token_list([pieces.id_to_piece(i) for i in range(size)])
    writer.add_token_scores([pieces.get_score(i) for i in range(size)])
    writer.add_token_types(piece_types(pieces))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{{ messages }}")
    writer.add_context_length(4096)
    writer.add_tensor("output_norm.weight", np.ones(4, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_llama_gguf_gives_the_ids_of_its_sentencepiece_model(our_ids, pages, llama2, llama2_gguf):
    files, texts = pages
    assert_same_ids(our_ids(llama2_gguf, files), our_ids(llama2, files), texts)


def test_a_gguf_of_ranked_merges_and_spaces_as_metaspace_gives_the_ids_of_tokenizers(our_ids, pages, pieces, llama2_gguf, helper, run_command, tmp_path):
    """Gemma 4's: what llama.cpp calls "gemma4"."""
    import gguf

    run_command([helper("tokenize_main"), "--write", llama2_gguf, tmp_path / "there"])
    whole = json.loads((tmp_path / "there" / "tokenizer.json").read_text())
    whole["normalizer"] = next(step for step in whole["normalizer"]["normalizers"] if step["type"] == "Replace")
    whole["decoder"]["decoders"] = [step for step in whole["decoder"]["decoders"] if step["type"] != "Strip"]
    (tmp_path / "there" / "tokenizer.json").write_text(json.dumps(whole))
    size, path = pieces.vocab_size(), tmp_path / "gemma4.gguf"
    writer = gguf.GGUFWriter(str(path), "gemma4")
    writer.add_tokenizer_model("gemma4")
    writer.add_token_list([pieces.id_to_piece(i) for i in range(size)])
    writer.add_token_scores([0.0] * size)
    writer.add_token_types(piece_types(pieces))
    writer.add_token_merges([" ".join(merge) for merge in whole["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_space_prefix(False)
    writer.add_tensor("output_norm.weight", np.ones(4, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    files, texts = pages
    ids = our_ids(path, files)
    assert_same_ids(ids, our_ids(tmp_path / "there", files), texts)
    assert run_command([helper("tokenize_main"), "--write", path, tmp_path / "out"]).stdout.split() == ["tokenizer.json", "tokenizer_config.json"]
    assert_same_ids(ids, our_ids(tmp_path / "out", files), texts)
    assert_same_as_tokenizers(our_ids, pages, tmp_path / "out")


def test_the_files_written_from_a_llama_gguf_give_transformers_the_same_ids(our_ids, pages, llama2, llama2_gguf, helper, run_command, tmp_path):
    from transformers import AutoTokenizer

    written = run_command([helper("tokenize_main"), "--write", llama2_gguf, tmp_path / "out"]).stdout.split()
    assert written == ["tokenizer.json", "tokenizer_config.json", "tokenizer.model"]
    (tmp_path / "out" / "config.json").write_text('{"model_type": "llama"}')
    loaded = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (loaded.bos_token, loaded.eos_token, loaded.model_max_length, loaded.chat_template) == ("<s>", "</s>", 4096, "{{ messages }}")
    files, texts = pages
    assert_same_ids(our_ids(llama2, files), [loaded(text).input_ids for text in texts], texts)
    assert_same_as_tokenizers(our_ids, pages, tmp_path / "out")
    import sentencepiece

    rewritten = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "out" / "tokenizer.model"))
    assert [rewritten.encode(text) for text in texts[:100]] == [
        sentencepiece.SentencePieceProcessor(model_file=str(llama2 / "tokenizer.model")).encode(text) for text in texts[:100]]


def test_the_tokenizer_that_transformers_makes_of_a_sentencepiece_model_is_read_alike(our_ids, pages, llama2, tmp_path):
    from transformers import LlamaTokenizer

    LlamaTokenizer.from_pretrained(llama2).save_pretrained(tmp_path)
    assert_same_as_tokenizers(our_ids, pages, tmp_path)


def test_a_sentencepiece_model_with_a_character_map_gives_the_ids_of_sentencepiece(our_ids, pages, training_texts, tmp_path):
    import sentencepiece

    lines = [line for text in training_texts for line in text.replace("\0", "").split("\n") if line]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(tmp_path / "tokenizer"), model_type="bpe", vocab_size=2000,
        normalization_rule_name="nmt_nfkc", byte_fallback=True, user_defined_symbols=["<|special|>"], minloglevel=2)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    files, texts = pages
    chosen = [i for i, text in enumerate(texts) if not any(special in text for special in ("<s>", "</s>", "<unk>"))]
    texts = [texts[i] for i in chosen]
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": false, "add_eos_token": true}')
    assert_same_ids(our_ids(tmp_path, [files[i] for i in chosen]), [[*reference.encode(text), 2] for text in texts], texts)


METASPACE = "▁"
METASPACE_FORMS = {
    "prepended by the normalizer": (
        {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": METASPACE},
                                             {"type": "Replace", "pattern": {"String": " "}, "content": METASPACE}]}, None),
    "once, not split": (None, {"type": "Metaspace", "replacement": METASPACE, "prepend_scheme": "first", "split": False}),
    "always, split": (None, {"type": "Metaspace", "replacement": METASPACE, "prepend_scheme": "always", "split": True}),
    "never": (None, {"type": "Metaspace", "replacement": METASPACE, "prepend_scheme": "never", "split": False}),
    "the old way": (None, {"type": "Metaspace", "replacement": METASPACE, "add_prefix_space": True}),
    "by a regular expression": (
        {"type": "Replace", "pattern": {"Regex": "[ \\h]"}, "content": METASPACE},
        {"type": "Split", "pattern": {"String": METASPACE}, "behavior": "MergedWithPrevious", "invert": False}),
}


@pytest.mark.parametrize("form", METASPACE_FORMS)
def test_metaspace_vocabularies_in_tokenizer_json_give_the_same_ids(our_ids, pages, pieces, tmp_path, form):
    vocab, merges = merges_of(pieces)
    normalizer, pre_tokenizer = METASPACE_FORMS[form]
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": i, "content": content, **special} for i, content in enumerate(["<unk>", "<s>", "</s>"])]
        + [{"id": 32000, "content": "new", **special, "single_word": True, "normalized": True, "special": False},
           {"id": 32001, "content": "<|strip|>", **special, "lstrip": True, "rstrip": True}],
        "normalizer": normalizer, "pre_tokenizer": pre_tokenizer,
        "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                           "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                           "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": None,
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": True, "byte_fallback": True, "ignore_merges": False, "vocab": vocab,
                  "merges": [f"{left} {right}" for left, right in merges]},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    assert_same_as_tokenizers(our_ids, pages, tmp_path)


# ---- Byte-level -------------------------------------------------------------------------------------------------


def test_a_byte_level_gguf_gives_the_ids_of_the_same_parts_put_together_in_tokenizers(our_ids, pages, model):
    import gguf
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    fields = gguf.GGUFReader(str(model)).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"].contents()]
    reference = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    reference.pre_tokenizer = pre_tokenizers.ByteLevel(False)  # as transformers reads the file
    types = fields["tokenizer.ggml.token_type"].contents()
    reference.add_special_tokens([AddedToken(token, normalized=False) for token, kind in zip(tokens, types) if kind == 3])
    files, texts = pages
    assert_same_ids(our_ids(model, files), [reference.encode(text).ids for text in texts], texts)


def test_the_files_written_from_a_byte_level_gguf_give_transformers_the_same_ids(our_ids, pages, model, helper, run_command, tmp_path):
    from transformers import AutoTokenizer

    run_command([helper("tokenize_main"), "--write", model, tmp_path])
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert "<|im_start|>" in loaded.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    files, texts = pages
    ours = our_ids(model, files)
    assert_same_ids(ours, [loaded(text).input_ids for text in texts], texts)
    assert_same_ids(our_ids(tmp_path, files), ours, texts)
    assert_same_as_tokenizers(our_ids, pages, tmp_path)


def split_on(*patterns, **options):
    from tokenizers import Regex, pre_tokenizers

    parts = [pre_tokenizers.Split(Regex(pattern), **{"behavior": "isolated", **options}) for pattern in patterns]
    return pre_tokenizers.Sequence([*parts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def byte_level_forms():
    from tokenizers import normalizers, pre_tokenizers

    gpt2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    several = pre_tokenizers.Sequence([
        pre_tokenizers.Split(" ", "merged_with_next"), pre_tokenizers.Digits(individual_digits=False),
        pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)])
    return {
        "llama3": (None, split_on(LLAMA3_PATTERN), True),
        "qwen2": (normalizers.NFC(), split_on(QWEN2_PATTERN), False),
        "tekken": (None, split_on(TEKKEN_PATTERN), True),
        "o200k": (None, split_on(O200K_PATTERN), False),
        "seed": (None, split_on(SEED_PATTERN), False),
        "deepseek": (None, split_on(*DEEPSEEK_PATTERNS), False),
        "possessive": (None, split_on(POSSESSIVE_PATTERN), False),
        "gpt2": (None, pre_tokenizers.ByteLevel(add_prefix_space=True), False),
        "nfkc, several pre-tokenizers": (normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("a", "b")]), several, False),
        "words and spaces": (normalizers.NFD(), split_on(r"[\w']+|[^\S\n]+", behavior="contiguous"), False),
        "removed": (None, split_on(r"\s+", behavior="removed"), False),
        "inverted": (None, split_on(gpt2, behavior="removed", invert=True), False),
        "merged with previous": (None, split_on(r"[^\w\s]|\h", behavior="merged_with_previous"), False),
        "merged with next": (None, split_on(r"\s|\W", behavior="merged_with_next"), False),
        "empty matches": (None, split_on(r"\d*|x?"), False),
    }


@pytest.mark.parametrize("form", ["llama3", "qwen2", "tekken", "o200k", "seed", "deepseek", "possessive", "gpt2", "nfkc, several pre-tokenizers", "words and spaces", "removed",
                                  "inverted", "merged with previous", "merged with next", "empty matches"])
def test_trained_byte_level_tokenizers_give_the_same_ids_and_texts(our_ids, pages, training_texts, tmp_path, form):
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    normalizer, pre_tokenizer, ignore_merges = byte_level_forms()[form]
    trained = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if normalizer is not None:
        trained.normalizer = normalizer
    trained.pre_tokenizer = pre_tokenizer
    trained.decoder = decoders.ByteLevel()
    trained.train_from_iterator(training_texts, trainers.BpeTrainer(
        vocab_size=6000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<s>", "</s>"], show_progress=False))
    trained.add_special_tokens([AddedToken("<|special|>", normalized=False), AddedToken("<|strip|>", lstrip=True, rstrip=True, normalized=False)])
    trained.add_tokens([AddedToken("new", single_word=True, normalized=True), AddedToken("日本", normalized=False), AddedToken("日", normalized=False)])
    trained.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    trained.save(str(tmp_path / "tokenizer.json"))
    assert_same_as_tokenizers(our_ids, pages, tmp_path)
