"""`dynslice eval --tasks` against lm-evaluation-harness: prompts of every task, and figures on the real model."""

import json
import random

import pytest

import harness_tasks

WORDS = "river army house city small early wrote played because naïve Zürich don't 1914 ; café game".split()


def sentence(chosen, words=6):
    return " ".join(chosen.choices(WORDS, k=words))


def question_rows(task, chosen, count):
    """Rows as the hub has them, with what trips up prompts: odd spaces, brackets, digits, quotes."""
    rows = []
    for i in range(count):
        text, other, third = sentence(chosen), sentence(chosen, 3) + chosen.choice(["", " ", ".", "\n"]), sentence(chosen, 2)
        if task in ("arc_easy", "arc_challenge"):
            labels = chosen.choice([["A", "B", "C"], ["1", "2", "3"]])
            row = {"id": f"Q{i}", "question": f"{text}?", "choices": {"text": [other, third, text], "label": labels}, "answerKey": chosen.choice(labels)}
        elif task == "openbookqa":
            row = {"id": f"Q{i}", "question_stem": text, "choices": {"text": [other, third, text], "label": ["A", "B", "C"]}, "answerKey": chosen.choice("ABC")}
        elif task == "piqa":
            row = {"goal": text + chosen.choice(["", " ", "?"]), "sol1": other, "sol2": third, "label": chosen.randrange(2)}
        elif task == "hellaswag":
            endings = [f" [substeps] {other}  {third}", f"{third} [title] {text}", text, f"[x] {other}"]
            row = {"ind": i, "activity_label": text, "ctx_a": f"{other} [header] {text} [step] {third}", "ctx_b": f"{third.upper()} É  {other}", "endings": endings, "label": str(chosen.randrange(4))}
        elif task == "winogrande":
            row = {"sentence": f"{text} _ {other} _ .", "option1": "Ann", "option2": third, "answer": chosen.choice("12")}
        elif task == "boolq":
            row = {"question": text, "passage": f"{other}\n{third}", "idx": i, "label": chosen.randrange(2)}
        elif task == "social_iqa":
            row = {"context": text, "question": f"{other}?", "answerA": third, "answerB": other, "answerC": text, "label": chosen.choice("123")}
        elif task == "lambada_openai":
            row = {"text": f"{text}  {third}\n{third} \u201c{chosen.choice(WORDS)}"}
        else:
            row = {"question": f" {text}\n", "choices": [other, third, text, "0"], "answer": chosen.randrange(4), "subject": "anatomy"}
        rows.append(row)
    return rows


# task: (the hub's name and configuration, the split that is asked, the split of the examples, our folder)
TASKS = {
    "piqa": ("baber/piqa", None, "validation", "train", "piqa"),
    "arc_easy": ("allenai/ai2_arc", "ARC-Easy", "test", "train", "arc_easy"),
    "arc_challenge": ("allenai/ai2_arc", "ARC-Challenge", "test", "train", "arc_challenge"),
    "hellaswag": ("Rowan/hellaswag", None, "validation", "train", "hellaswag"),
    "winogrande": ("allenai/winogrande", "winogrande_xl", "validation", "train", "winogrande"),
    "boolq": ("aps/super_glue", "boolq", "validation", "train", "boolq"),
    "openbookqa": ("allenai/openbookqa", "main", "test", "train", "openbookqa"),
    "social_iqa": ("lighteval/siqa", None, "validation", "train", "social_iqa"),
    "lambada_openai": ("EleutherAI/lambada_openai", "default", "test", "test", "lambada_openai"),
    "mmlu_anatomy": ("cais/mmlu", "anatomy", "test", "dev", "mmlu/anatomy"),
    "mmlu_virology": ("cais/mmlu", "virology", "test", "dev", "mmlu/virology"),
}


@pytest.fixture(scope="module")
def made_data(tmp_path_factory):
    """(folder with our files, {(path, name): {split: rows}}): the same rows for both programs."""
    folder, data, chosen = tmp_path_factory.mktemp("data"), {}, random.Random(5)
    for task, (path, name, questions, examples, place) in TASKS.items():
        splits = {questions: question_rows(task, chosen, 23)}
        # Some rows are in both splits, so that a question could be drawn as its own example.
        splits.setdefault(examples, question_rows(task, chosen, 31)[:25] + splits[questions][:6])
        data[path, name] = splits
        for split, rows in splits.items():
            (folder / place).mkdir(parents=True, exist_ok=True)
            (folder / place / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder, data


@pytest.fixture(scope="module")
def tiny_harness(tiny_model):
    with harness_tasks.offline():
        yield harness_tasks.hf_model(tiny_model("llama"), batch_size=8)


def samples_of(run, model, tasks, data_dir, folder, *options):
    """Lines of --log-samples by task, and the JSON."""
    file = folder / "samples.jsonl"
    result = run("eval", model, "--tasks", ",".join(tasks), "--data-dir", data_dir, "--log-samples", file, "--json", *options).json()
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return {task: [line for line in lines if line["task"] == task] for task in tasks}, result


@pytest.mark.parametrize("examples", [0, 3])
def test_every_task_asks_and_scores_as_the_harness_does(run, tiny_model, tiny_harness, made_data, tmp_path, examples):
    data_dir, data = made_data
    theirs, _ = harness_tasks.evaluate(tiny_harness, TASKS, data, num_fewshot=examples)
    ours, result = samples_of(run, tiny_model("llama"), TASKS, data_dir, tmp_path, "--num-fewshot", examples)
    for task in TASKS:
        samples = sorted(theirs["samples"][task], key=lambda sample: sample["doc_id"])
        assert len(samples) == len(ours[task]) == 23
        for sample, line in zip(samples, ours[task]):
            asked = [tuple(arguments) for arguments in sample["arguments"]]
            contexts = line["contexts"] * (len(asked) if len(line["contexts"]) == 1 else 1)
            assert list(zip(contexts, line["continuations"])) == asked
            values = harness_tasks.likelihoods(sample)
            assert line["log_likelihoods"] == pytest.approx([value for value, _ in values], abs=2e-3)
            assert line["right"] == bool(sample["acc"])
            if "acc_norm" in sample:
                assert line["right_norm"] == bool(sample["acc_norm"])
        found, expected = result["tasks"][task], theirs["results"][task]
        assert found["n"] == 23 and found["num_fewshot"] == examples
        assert found["acc"] == pytest.approx(expected["acc,none"])
        assert found["version"] == theirs["versions"][task]
        assert ("acc_norm" in found) == ("acc_norm,none" in expected)
        if "acc_norm" in found:
            assert found["acc_norm"] == pytest.approx(expected["acc_norm,none"])
        if task == "lambada_openai":
            assert found["perplexity"] == pytest.approx(expected["perplexity,none"], rel=2e-3)


def test_standard_errors_are_the_harnesss(run, tiny_model, tiny_harness, made_data, tmp_path):
    data_dir, data = made_data
    tasks = ["hellaswag", "arc_easy", "mmlu_anatomy"]
    theirs, _ = harness_tasks.evaluate(tiny_harness, tasks, data, num_fewshot=0, bootstrap_iters=10)
    _, result = samples_of(run, tiny_model("llama"), tasks, data_dir, tmp_path, "--num-fewshot", "0")
    for task in tasks:
        assert result["tasks"][task]["stderr"] == pytest.approx(theirs["results"][task]["acc_stderr,none"])
    assert result["tasks"]["hellaswag"]["acc_norm_stderr"] == pytest.approx(theirs["results"]["hellaswag"]["acc_norm_stderr,none"])


def test_long_contexts_are_cut_as_the_harness_cuts_them(run, tiny_model, tmp_path):
    """The model takes 48 tokens: fewer than most of these questions have."""
    model, chosen = tiny_model("llama", max_position_embeddings=48), random.Random(8)
    rows = [{"goal": sentence(chosen, chosen.randint(2, 60)), "sol1": sentence(chosen, 3), "sol2": sentence(chosen, 4), "label": 1} for _ in range(20)]
    (tmp_path / "piqa").mkdir()
    (tmp_path / "piqa/validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with harness_tasks.offline():
        theirs, _ = harness_tasks.evaluate(harness_tasks.hf_model(model, 4), ["piqa"], {("baber/piqa", None): {"validation": rows}})
    ours, result = samples_of(run, model, ["piqa"], tmp_path, tmp_path)
    agreement = harness_tasks.compare(ours["piqa"], theirs["samples"]["piqa"])
    assert agreement["largest_difference"] < 2e-3
    cut = sum(line["cut_tokens"] > 0 for line in ours["piqa"])
    assert result["tasks"]["piqa"]["cut_questions"] == cut
    assert 3 < cut < 20


def test_the_real_model_answers_as_in_the_harness(run, data_dir, model, dequantized, tmp_path):
    """Some questions of each data set; tools/compare_lm_eval.py compares all of them, and the speed."""
    data, limit = harness_tasks.published_data(data_dir), 6
    tasks = ["arc_easy", "arc_challenge", "piqa"]
    with harness_tasks.offline():
        theirs, _ = harness_tasks.evaluate(harness_tasks.hf_model(dequantized, 8), tasks, data, limit=limit)
    ours, result = samples_of(run, model, tasks, data_dir, tmp_path, "--limit", limit)
    for task in tasks:
        agreement = harness_tasks.compare(ours[task], theirs["samples"][task])
        assert agreement["n"] == limit and agreement["same"] == 1 and agreement["same_norm"] == 1
        assert agreement["largest_difference"] < 5e-3
        assert result["tasks"][task]["acc"] == pytest.approx(theirs["results"][task]["acc,none"])
        assert result["tasks"][task]["acc_norm"] == pytest.approx(theirs["results"][task]["acc_norm,none"])
