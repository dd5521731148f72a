"""`dynslice eval --tasks`: output, data from files and from a dataset server, comparing, resuming, and bad input."""

import hashlib
import http.server
import json
import math
import shutil
import threading
import urllib.parse

import pytest

WORDS = ("river", "house", "army", "city", "song", "team")
ROWS = [{"goal": f"the {WORDS[i % 6]} {i} was in the", "sol1": WORDS[i // 6], "sol2": WORDS[(i // 6 + 1 + i % 5) % 6], "label": i % 2} for i in range(30)]


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_rows(folder / "piqa/validation.jsonl", ROWS)
    write_rows(folder / "lambada_openai/test.jsonl", [{"text": f"the house was early and {word}"} for word in ("old", "new", "small")])
    for subject in ("abstract_algebra", "anatomy"):
        choices = {"choices": ["one", "two", "the army", "a song"], "subject": subject}
        write_rows(folder / f"mmlu/{subject}/test.jsonl", [{"question": f"which {i}", "answer": i % 4, **choices} for i in range(5)])
        write_rows(folder / f"mmlu/{subject}/dev.jsonl", [{"question": f"first {i}", "answer": i % 4, **choices} for i in range(5)])
    return folder


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """Surroundings in which only what a test names is found."""
    return {"DYNSLICE_DATA_DIR": "", "DYNSLICE_CACHE": tmp_path_factory.mktemp("cache"), "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def evaluate(run, data, clean):
    """evaluate(model, tasks, ...options) -> Result of `eval --tasks` on the data above."""

    def call(model, tasks, *options, data=data, **more):
        return run("eval", model, "--tasks", tasks, "--data-dir", data, *options, **{"env": clean, **more})

    return call


def test_json_has_the_figures_of_every_task(evaluate, tiny_model, data):
    result = evaluate(tiny_model("llama"), "piqa,lambada_openai", "--json").json()
    piqa, lambada = result["tasks"]["piqa"], result["tasks"]["lambada_openai"]
    assert piqa["n"] == 30 and piqa["version"] == 1 and piqa["num_fewshot"] == 0 and piqa["cut_questions"] == 0
    for name, error in (("acc", "stderr"), ("acc_norm", "acc_norm_stderr")):
        share = piqa[name]
        assert piqa[error] == pytest.approx(math.sqrt(share * (1 - share) / 29))
    assert piqa["data"] == {"file": str(data / "piqa/validation.jsonl"), "sha256": hashlib.sha256((data / "piqa/validation.jsonl").read_bytes()).hexdigest()}
    assert "acc_norm" not in lambada and lambada["perplexity"] > 1 and lambada["perplexity_stderr"] > 0
    assert result["questions"] == 33 and result["questions_per_second"] == pytest.approx(33 / result["task_seconds"])
    assert result["tasks_of"].startswith("lm-evaluation-harness 0.4")
    assert "perplexity" not in result
    assert result["provenance"]["command_line"][1] == "eval"


def test_the_table_names_versions_and_examples(evaluate, tiny_model):
    text = evaluate(tiny_model("llama"), "piqa,mmlu_anatomy").stdout
    header, piqa, anatomy, *_ = text.splitlines()
    assert header.split() == ["task", "version", "few-shot", "n", "acc", "acc_norm"]
    assert piqa.split()[:4] == ["piqa", "1", "0", "30"] and "±" in piqa
    assert anatomy.split()[:4] == ["mmlu_anatomy", "1", "5", "5"]
    assert "lm-evaluation-harness 0.4" in text and "questions/s" in text


def test_results_do_not_depend_on_threads_memory_or_company(evaluate, tiny_model, tmp_path):
    def likelihoods(tasks, *options):
        evaluate(tiny_model("llama"), tasks, "--log-samples", tmp_path / "samples", *options)
        lines = [json.loads(line) for line in (tmp_path / "samples").read_text().splitlines()]
        return [value for line in lines if line["task"] == "piqa" for value in line["log_likelihoods"]]

    alone = likelihoods("piqa", "--threads", "1")
    assert len(alone) == 60
    assert likelihoods("lambada_openai,piqa", "--threads", "2") == pytest.approx(alone, abs=1e-3)
    assert likelihoods("piqa", "--activation-memory", "10KB") == pytest.approx(alone, abs=1e-3)


def test_a_limit_takes_the_first_questions(evaluate, tiny_model, tmp_path):
    model = tiny_model("llama")
    evaluate(model, "piqa", "--log-samples", tmp_path / "all")
    result = evaluate(model, "piqa", "--limit", "4", "--log-samples", tmp_path / "some", "--json").json()
    first, some = ([json.loads(line) for line in (tmp_path / name).read_text().splitlines()] for name in ("all", "some"))
    assert result["tasks"]["piqa"]["n"] == len(some) == 4
    assert [line["contexts"] for line in some] == [line["contexts"] for line in first[:4]]
    assert [line["question"] for line in some] == [0, 1, 2, 3]
    line = some[1]
    assert line["id"] == "1" and line["gold"] == 1 and line["prediction"] == (0 if line["log_likelihoods"][0] >= line["log_likelihoods"][1] else 1)
    assert line["right"] == (line["prediction"] == 1) and line["cut_tokens"] == 0 and len(line["tokens"]) == 2


STEM = """abstract_algebra anatomy astronomy college_biology college_chemistry college_computer_science college_mathematics
college_physics computer_security conceptual_physics electrical_engineering elementary_mathematics high_school_biology
high_school_chemistry high_school_computer_science high_school_mathematics high_school_physics high_school_statistics
machine_learning""".split()


def test_groups_average_their_questions(evaluate, tiny_model, data, tmp_path):
    missing = evaluate(tiny_model("llama"), "mmlu", expect=4)
    assert "mmlu/astronomy/test.jsonl" in missing.stderr
    for subject in STEM:
        shutil.copytree(data / "mmlu" / "anatomy", tmp_path / "mmlu" / subject)
    write_rows(tmp_path / "mmlu/astronomy/test.jsonl", [{"question": "one more", "answer": 0, "choices": ["a", "b", "c", "d"]}])
    result = evaluate(tiny_model("llama"), "mmlu_stem", "--json", data=tmp_path).json()["tasks"]
    group = result["mmlu_stem"]
    assert group["members"] == [f"mmlu_{subject}" for subject in STEM] and group["version"] == 2
    assert group["n"] == 91 == sum(result[name]["n"] for name in group["members"])
    assert group["acc"] == pytest.approx(sum(result[name]["acc"] * result[name]["n"] for name in group["members"]) / 91)
    assert result["mmlu_anatomy"]["num_fewshot"] == 5


def test_tasks_and_perplexity_come_together_or_alone(evaluate, tiny_model, text_file):
    model = tiny_model("llama")
    options = ("--ppl", text_file, "--samples", "2", "--seqlen", "32")
    both = evaluate(model, "piqa", *options, "--json").json()
    assert both["perplexity"]["tiny.txt"]["windows"] == 2 and both["tasks"]["piqa"]["n"] == 30
    assert both["provenance"]["text"]["windows"] == 2
    text = evaluate(model, "piqa", *options).stdout
    assert "piqa" in text and "perplexity" in text
    alone = evaluate(model, "piqa", "--seqlen", "32")
    assert "not used: --seqlen" in alone.stderr and "perplexity" not in alone.stdout


def test_against_tells_what_flipped(evaluate, tiny_model, tmp_path):
    model, other = tiny_model("llama"), tiny_model("llama", seed=9)
    result = evaluate(model, "piqa,lambada_openai", "--against", other, "--json", "--log-samples", tmp_path / "samples").json()
    piqa = result["tasks"]["piqa"]
    lines = [line for line in map(json.loads, (tmp_path / "samples").read_text().splitlines()) if line["task"] == "piqa"]
    assert piqa["against"]["acc"] == evaluate(other, "piqa", "--json").json()["tasks"]["piqa"]["acc"]
    lost = [line["id"] for line in lines if line["against"]["right"] and not line["right"]]
    gained = [line["id"] for line in lines if not line["against"]["right"] and line["right"]]
    assert piqa["flipped"] == {"lost": lost, "gained": gained, "changed": []}
    assert lost or gained
    assert piqa["agreement"] == pytest.approx(1 - (len(lost) + len(gained)) / 30)

    def stability(per_choice):
        spreads = []
        for line in lines:
            values = [per_choice(-value / tokens) for value, tokens in zip(line["against"]["log_likelihoods"], line["against"]["tokens"])]
            mean = sum(values) / len(values)
            spreads.append(math.sqrt(sum((value - mean) ** 2 for value in values) / len(values)))
        weights = [math.exp(spread - max(spreads)) for spread in spreads]
        return sum(weight for weight, line in zip(weights, lines) if line["right"] == line["against"]["right"]) / sum(weights)

    assert piqa["stability"] == pytest.approx(stability(math.exp))
    assert piqa["stability_by_loss"] == pytest.approx(stability(lambda loss: loss))
    table = evaluate(model, "piqa", "--against", other).stdout
    assert "stability" in table and "lost" in table
    same = evaluate(model, "piqa", "--against", model, "--json").json()["tasks"]["piqa"]
    assert same["stability"] == pytest.approx(1) and same["flipped"] == {"lost": [], "gained": [], "changed": []}


def test_a_killed_run_goes_on(kill_and_resume, run, tiny_model, data, clean, tmp_path):
    """Stopped at every layer boundary of both models' walks; the result is an undisturbed run's."""
    command = ["eval", tiny_model("llama"), "--tasks", "piqa", "--against", tiny_model("llama", seed=9), "--data-dir", data, "--log-samples"]
    run(*command, tmp_path / "whole", env=clean)
    killed = kill_and_resume([*command, tmp_path / "parts"], env=clean)
    assert killed.kills >= 7
    assert (tmp_path / "parts").read_text() == (tmp_path / "whole").read_text()
    assert not list((clean["DYNSLICE_CACHE"] / "journals").glob("eval-tasks-*"))


def test_a_dry_run_says_what_it_would_take(evaluate, tiny_model, text_file):
    plan = evaluate(tiny_model("llama"), "piqa", "--dry-run", "--json").json()
    assert plan["dry_run"] == "eval" and plan["memory"]["parts"]["open_sequence"] > 0
    both = evaluate(tiny_model("llama"), "piqa", "--ppl", text_file, "--dry-run", "--json").json()
    assert both["time"]["work"]["forward_flops"] > 10 * plan["time"]["work"]["forward_flops"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--tasks", "piqua"], 2, ["piqua", "did you mean piqa?"]),
        (["--tasks", "arc"], 2, ["arc_easy", "arc_challenge"]),
        (["--tasks", "piqa,,mmlu"], 2, ["empty name"]),
        (["--tasks", ""], 2, ["names no task"]),
        (["--tasks", "piqa", "--limit", "0"], 2, ["--limit"]),
        (["--tasks", "piqa", "--num-fewshot", "-1"], 2, ["--num-fewshot"]),
        (["--tasks", "mmlu_anatomy", "--num-fewshot", "6"], 2, ["only 5 rows"]),
        (["--limit", "5"], 2, ["--tasks"]),
        (["--tasks", "piqa", "--log-samples", "/no/such/folder/file"], 4, ["/no/such/folder/file"]),
        (["--tasks", "hellaswag"], 4, ["hellaswag/validation.jsonl", "--data-dir", "HF_HUB_OFFLINE"]),
        (["--tasks", "piqa", "--num-fewshot", "2"], 4, ["piqa/train.jsonl"]),
        (["--tasks", "piqa", "--against", "/no/such/model"], 4, ["/no/such/model"]),
    ],
)
def test_what_cannot_be_is_one_clear_line(run, tiny_model, data, clean, arguments, code, words):
    result = run("eval", tiny_model("llama"), "--data-dir", data, *arguments, env=clean, expect=code)
    assert len(result.stderr.strip().splitlines()) == 1 and result.stdout == ""
    for word in words:
        assert word in result.stderr


def test_a_task_named_twice_is_run_once(evaluate, tiny_model):
    result = evaluate(tiny_model("llama"), "piqa,piqa", "--json")
    assert result.json()["questions"] == 30 and "piqa twice" in result.stderr


def test_bad_rows_are_named_by_line(run, tiny_model, clean, tmp_path):
    write_rows(tmp_path / "piqa/validation.jsonl", [*ROWS[:6], {**ROWS[6], "sol2": ""}])
    result = run("eval", tiny_model("llama"), "--tasks", "piqa", "--data-dir", tmp_path, env=clean, expect=3)
    assert f"{tmp_path / 'piqa/validation.jsonl'}: line 7: choice 2 is empty" in result.stderr


# ---- The dataset server ---------------------------------------------------------------------------------------


class Server:
    """Answers /rows as the hub's dataset server does; faults are set per test."""

    def __init__(self, rows):
        self.rows, self.requests, self.statuses, self.change = rows, [], [], lambda page: page
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):
                outer.answer(self)

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def answer(self, request):
        url = urllib.parse.urlparse(request.path)
        query = {key: values[0] for key, values in urllib.parse.parse_qs(url.query).items()}
        self.requests.append((url.path, query, dict(request.headers)))
        if self.statuses:
            request.send_response(self.statuses.pop(0))
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        first, length = int(query["offset"]), int(query["length"])
        rows = [{"row_idx": first + i, "row": row, "truncated_cells": []} for i, row in enumerate(self.rows[first : first + length])]
        page = {"features": [], "rows": rows, "num_rows_total": len(self.rows), "num_rows_per_page": 100, "partial": False}
        body = json.dumps(self.change(page)).encode()
        request.send_response(200)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)


@pytest.fixture
def server():
    made = Server([{**ROWS[0], "goal": f"question {i} é"} for i in range(230)])
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def ask_server(run, tiny_model, server, tmp_path):
    """ask_server(...options) -> Result of an evaluation whose data are on the server only."""
    env = {"DYNSLICE_DATA_DIR": "", "DYNSLICE_CACHE": tmp_path / "cache", "DYNSLICE_DATASETS_SERVER": server.url, "HF_HUB_OFFLINE": ""}
    return lambda *options, **more: run("eval", tiny_model("llama"), "--tasks", "piqa", "--limit", "5", "--json", *options, **{"env": env, **more})


def test_rows_come_from_the_dataset_server_once(ask_server, server, tmp_path):
    first = ask_server().json()
    assert [query["offset"] for _, query, _ in server.requests] == ["0", "100", "200"]
    path, query, _ = server.requests[0]
    assert path == "/rows" and query == {"dataset": "baber/piqa", "config": "default", "split": "validation", "offset": "0", "length": "100"}
    cached = tmp_path / "cache/datasets/piqa/validation.jsonl"
    assert [json.loads(line) for line in cached.read_text(encoding="utf-8").splitlines()] == server.rows
    assert ask_server().json()["tasks"]["piqa"]["data"] == first["tasks"]["piqa"]["data"]
    assert len(server.requests) == 3


def test_a_busy_server_is_asked_again(ask_server, server):
    server.statuses = [503, 429]
    assert ask_server().json()["tasks"]["piqa"]["n"] == 5
    assert len(server.requests) == 5


@pytest.mark.parametrize(
    ("change", "code", "word"),
    [
        (lambda page: {**page, "partial": True}, 4, "only a part"),
        (lambda page: {**page, "rows": page["rows"][1:]}, 3, "row_idx"),
        (lambda page: {**page, "rows": []}, 3, "no rows"),
        (lambda page: {"error": "?"}, 3, "num_rows_total"),
        (lambda page: {**page, "rows": [{**row, "truncated_cells": ["goal"]} for row in page["rows"]]}, 3, "truncated_cells"),
        (lambda page: {**page, "num_rows_total": 0, "rows": []}, 3, "no rows"),
        (lambda page: [page], 3, "object"),
    ],
)
def test_answers_that_are_no_rows_leave_nothing_behind(ask_server, server, tmp_path, change, code, word):
    server.change = change
    result = ask_server(expect=code)
    assert word in result.stderr and len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "cache/datasets").exists()


@pytest.mark.parametrize(("status", "word"), [(404, "HTTP 404"), (401, "HF_TOKEN")])
def test_a_server_that_refuses_is_named_with_the_files_that_would_do(ask_server, server, status, word):
    server.statuses = [status]
    result = ask_server(expect=4)
    assert word in result.stderr and "piqa/validation.jsonl" in result.stderr and server.url in result.stderr


def test_a_server_that_is_not_there(ask_server, run):
    env = {"DYNSLICE_DATASETS_SERVER": "http://127.0.0.1:9"}
    assert "piqa/validation.jsonl" in ask_server(expect=4, env={**env, "DYNSLICE_DATA_DIR": "", "DYNSLICE_CACHE": "/nonexistent"}).stderr
    assert "DYNSLICE_DATASETS_SERVER" in ask_server(expect=2, env={"DYNSLICE_DATASETS_SERVER": "ftp//x", "DYNSLICE_DATA_DIR": ""}).stderr
