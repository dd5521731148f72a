"""lm-evaluation-harness on local data: its own task files and its `hf` model, with only the download replaced."""

import contextlib
import functools
import json
import os
import pathlib
import tempfile
import time
from unittest import mock


def read_lines(path):
    return [json.loads(line) for line in pathlib.Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]


def arc_rows(path):
    """AI2's rows as Hugging Face has them."""
    rows = []
    for row in read_lines(path):
        choices = row["question"]["choices"]
        rows.append({"id": row["id"], "question": row["question"]["stem"], "answerKey": row["answerKey"],
                     "choices": {"text": [c["text"] for c in choices], "label": [c["label"] for c in choices]}})
    return rows


def piqa_rows(folder, name="valid"):
    labels = (folder / f"{name}-labels.lst").read_text().split()
    return [{**row, "label": int(label)} for row, label in zip(read_lines(folder / f"{name}.jsonl"), labels, strict=True)]


def published_data(data_dir):
    """The data sets of DYNSLICE_DATA_DIR as {(path, name): {split: rows}}."""
    data_dir = pathlib.Path(data_dir)
    return {
        ("allenai/ai2_arc", "ARC-Easy"): {"test": arc_rows(data_dir / "arc/ARC-Easy-Test.jsonl")},
        ("allenai/ai2_arc", "ARC-Challenge"): {"test": arc_rows(data_dir / "arc/ARC-Challenge-Test.jsonl")},
        ("baber/piqa", None): {"validation": piqa_rows(data_dir / "piqa")},
    }


class AllSplits(dict):
    """A data set that lacks what no question is taken from: tasks name their training splits without using them."""

    def __missing__(self, split):
        return next(iter(self.values()))


@contextlib.contextmanager
def offline():
    settings = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, {**settings, "HF_HOME": folder}):
        yield


def hf_model(model, batch_size, dtype="float32"):
    """A folder, or a GGUF file, which transformers dequantizes."""
    from lm_eval.models.huggingface import HFLM

    model = pathlib.Path(model)
    options = {"pretrained": str(model), "trust_remote_code": True}
    if model.suffix == ".gguf":
        options = {"pretrained": str(model.parent), "gguf_file": model.name}
    return HFLM(**options, device="cpu", dtype=dtype, batch_size=batch_size)


FOLDERS = ["arc", "hellaswag", "lambada", "mmlu/default", "openbookqa", "piqa", "siqa", "super_glue", "winogrande"]


@functools.cache
def task_manager():
    """The harness' own files of the tasks that dynslice has: an index of all its thousands takes 15 seconds."""
    import lm_eval.tasks

    root = pathlib.Path(lm_eval.tasks.__file__).parent
    return lm_eval.tasks.TaskManager(include_defaults=False, include_path=[str(root / name) for name in FOLDERS])


def evaluate(model, tasks, data, **options):
    """(results, seconds) of lm_eval.simple_evaluate; `data` is {(path, name): {split: rows}}."""
    import datasets
    import lm_eval

    def load_dataset(path, name=None, **_):
        return AllSplits({split: datasets.Dataset.from_list(rows) for split, rows in data[path, name].items()})

    options = {"task_manager": task_manager(), "bootstrap_iters": 0, "log_samples": True, "verbosity": "ERROR", **options}
    with mock.patch("lm_eval.api.task.datasets.load_dataset", load_dataset):
        start = time.perf_counter()
        results = lm_eval.simple_evaluate(model=model, tasks=list(tasks), **options)
        return results, time.perf_counter() - start


def likelihoods(sample):
    """[(log-likelihood, is greedy)] of a logged sample's choices."""
    return [(float(value), bool(greedy)) for ((value, greedy),) in sample["resps"]]


def compare(ours, theirs):
    """What two lists of samples of one multiple-choice task share: ours as --log-samples writes them, theirs as lm-eval logs them."""
    import numpy as np

    theirs = sorted(theirs, key=lambda sample: sample["doc_id"])
    assert len(ours) == len(theirs)
    same = same_norm = 0
    largest = 0.0
    for our, their in zip(ours, theirs):
        values = np.array([value for value, _ in likelihoods(their)])
        same += our["prediction"] == int(values.argmax())
        lengths = np.array([len(text) - 1 for text in our["continuations"]])  # without the space in front
        same_norm += our["prediction_norm"] == int((values / lengths).argmax())
        largest = max(largest, float(np.abs(values - np.array(our["log_likelihoods"])).max()))
    return {"n": len(ours), "same": same / len(ours), "same_norm": same_norm / len(ours), "largest_difference": largest}
