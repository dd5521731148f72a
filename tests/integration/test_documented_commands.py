"""Every command in a code block of README.md and docs/ runs as it stands there.

The commands of a page run in order, in one folder, as in the shell of a new user: what one exports or writes, the next
one finds. HOME and caches are empty, the hub is a server of our own, and tiny models stand under the names that the
pages use. A block that cannot run has a comment with the reason on the line before it: <!-- not run: REASON -->
"""

import contextlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import traceback
from dataclasses import dataclass

import pytest

from conftest import make_text
from test_docs import MADE
from test_hub import Hub

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
PAGES = sorted([REPOSITORY / "README.md", *REPOSITORY.glob("docs/**/*.md"), *REPOSITORY.glob("examples/**/*.md")])

# How many commands of all pages are marked as not run. Change it together with a mark, so that a reviewer sees both.
NOT_RUN = 30

# What does not run here as documented: (part of a command, what runs in its place, why).
SUBSTITUTIONS = [
    ("--preset llama-3-8b", "--preset tiny", "80 layers of an 8B model take half an hour"),
    ("/var/tmp/", "./", "a test writes into its own folder"),
]

# A shell runs a command, and leaves its variables in a file. The first program that fails ends it, in a loop, in a pipe
# and (where bash tells) in <(...) too.
BASH = ["bash", "-c", 'set -eo pipefail; eval "$1"; [[ -z ${!:-} ]] || wait $!; env -0 >"$2"', "bash"]
ZSH = ["zsh", "-f", "-c", 'autoload -Uz compinit; compinit -u -D; set -eo pipefail; eval "$1"; env -0 >"$2"', "zsh"]
SHELLS = {"sh": BASH, "bash": BASH, "zsh": ZSH}
TESTED_ELSEWHERE = {"cmake": "tests/integration/test_install.py"}
NO_COMMAND = {"text"}  # the syntax of a command, or what one prints


# ---- What the pages say ----------------------------------------------------------------------------------------


@dataclass
class Block:
    page: str
    line: int  # of the fence
    language: str
    text: str
    reason: str | None  # why it is not run

    @property
    def where(self):
        return f"{self.page}:{self.line}"


def read_blocks(page, text):
    """The fenced blocks of a page, and the marks on the lines before their fences."""
    lines = text.split("\n")
    blocks, start = [], None
    for number, line in enumerate(lines):
        fence = re.fullmatch(r"```(.*)", line)
        if fence and start is None:
            start, language = number, fence.group(1).strip()
        elif fence:
            mark = re.fullmatch(r"<!-- *not run:? *(.*?) *-->", lines[start - 1]) if start else None
            blocks.append(Block(page, start + 1, language, "\n".join(lines[start + 1 : number]), mark and mark.group(1)))
            start = None
    assert start is None, f"{page}:{start + 1}: the block has no end"
    return blocks


def is_whole(text):
    """Whether a shell would run these lines, or wait for more: a line that goes on, a loop without its end."""
    return not text.endswith("\\") and subprocess.run(["bash", "-n", "-c", text], capture_output=True).returncode == 0


def split_commands(text):
    """The commands of a shell block: lines, or several of them that belong together. Comments are none."""
    commands, begun = [], []
    for line in text.split("\n"):
        if not begun and (not line.strip() or line.lstrip().startswith("#")):
            continue
        begun.append(line)
        if is_whole("\n".join(begun)):
            commands.append("\n".join(begun))
            begun = []
    assert not begun, f"a command without an end: {begun}"
    return commands


def commands_of(block):
    return split_commands(block.text) if block.language in SHELLS else [block.text]


BLOCKS = [block for page in PAGES for block in read_blocks(str(page.relative_to(REPOSITORY)), page.read_text("utf-8"))]
COMMANDS = [block for block in BLOCKS if block.language not in NO_COMMAND]
RUN_HERE = [block for block in COMMANDS if block.reason is None and block.language not in TESTED_ELSEWHERE]


def test_blocks_and_commands_are_found():
    page = "a\n```sh\none \\\n  two\n\n# no command\nfor i in 1; do\n  echo\ndone\n```\n<!-- not run: no GPU -->\n```sh\nthree\n```\n"
    first, second = read_blocks("page", page)
    assert split_commands(first.text) == ["one \\\n  two", "for i in 1; do\n  echo\ndone"]
    assert (first.line, first.reason) == (2, None) and (second.line, second.reason) == (12, "no GPU")


def test_every_block_has_a_known_language():
    known = {*SHELLS, *TESTED_ELSEWHERE, *NO_COMMAND, "python", "json"}
    unknown = [f"{block.where}: '{block.language}'" for block in BLOCKS if block.language not in known]
    assert not unknown, f"this test does not know what to do with {unknown}"


def test_every_command_that_is_not_run_has_a_reason():
    bare = [block.where for block in BLOCKS if block.reason is not None and len(block.reason.split()) < 3]
    assert not bare, f"marked as not run without a reason: {bare}"


def test_every_mark_stands_before_a_block():
    marks = sum(page.read_text("utf-8").count("\n<!-- not run") for page in PAGES)
    assert marks == sum(block.reason is not None for block in BLOCKS), "a mark must stand on the line before a fence"


def test_commands_stand_in_fenced_blocks():
    """A block that is only indented would not be run. The pages that the program writes have no other."""
    for page in PAGES:
        if page.name not in MADE:
            text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
            found = re.search(r"\n\n {4,}(?![-*0-9|]).*", text)
            assert not found, f"{page.name}: indented block {found and found.group(0).strip()!r}"


def test_only_as_many_commands_are_not_run_as_stated(record_property):
    not_run = [(block, command) for block in COMMANDS if block.reason is not None for command in commands_of(block)]
    run = sum(len(commands_of(block)) for block in RUN_HERE)
    elsewhere = sum(block.reason is None and block.language in TESTED_ELSEWHERE for block in COMMANDS)
    print(f"documented commands: {run} run, {elsewhere} in other tests, {len(not_run)} not run:")
    for block, command in not_run:
        print(f"  {block.where}: {command.splitlines()[0]}: {block.reason}")
    for name, value in {"run": run, "in_other_tests": elsewhere, "not_run": len(not_run)}.items():
        record_property(f"documented_commands_{name}", value)
    assert run > 30
    assert len(not_run) == NOT_RUN, f"NOT_RUN says {NOT_RUN}; see the list above"


def test_tools_have_the_options_that_the_pages_give_them():
    """Of those too that are not run."""
    commands = [command for block in COMMANDS for command in commands_of(block)]
    uses = [use for command in commands for use in re.findall(r"(?<!\S)(tools/[\w.]+)((?:[^\S\n]+[^\s#|;&]+)*)", command)]
    assert len(uses) > 10
    for tool, arguments in uses:
        source = (REPOSITORY / tool).read_text("utf-8")
        for option in re.findall(r"(?<!\S)--?[A-Za-z][\w-]*", arguments):
            assert re.search(rf"(?<![\w-]){option}(?![\w-])", source), f"{tool} has no {option}"


def test_every_substitution_is_needed():
    commands = "\n".join(block.text for block in RUN_HERE)
    assert not [part for part, _, _ in SUBSTITUTIONS if part not in commands]


# ---- A new user's machine --------------------------------------------------------------------------------------


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(row + "\n" for row in rows))


def write_arc(path, questions):
    rows = [{"id": f"Q{i}", "answerKey": "ABCD"[i % 4],
             "question": {"stem": f"Which of the old rivers {i} was first?",
                          "choices": [{"text": word, "label": label} for word, label in zip(("city", "house", "army", "song"), "ABCD")]}}
            for i in range(questions)]  # fmt: skip
    write_lines(path, map(json.dumps, rows))


@pytest.fixture
def data(page, tmp_path_factory):
    """The data sets that the pages name, tiny, in the layout that a user has them in."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "wikitext-2-raw").mkdir()
    # About 15 tokens a sentence: the default of 32 windows of 576 tokens to calibrate on, little to evaluate on. One page
    # evaluates on tokens 152,493 to 185,261 of the test split.
    test_sentences = 13000 if page == "docs/performance.md" else 600
    for split, sentences, seed in (("test", test_sentences, 11), ("valid", 600, 12), ("train", 1250, 13)):
        (folder / "wikitext-2-raw" / f"wiki.{split}.raw").write_text(make_text(sentences, seed), encoding="utf-8")
    piqa = [{"goal": f"the river {i} was in the", "sol1": "city", "sol2": "old house"} for i in range(12)]
    write_lines(folder / "piqa" / "valid.jsonl", map(json.dumps, piqa))
    write_lines(folder / "piqa" / "valid-labels.lst", [str(i % 2) for i in range(12)])
    write_arc(folder / "arc" / "ARC-Easy-Test.jsonl", 12)
    write_arc(folder / "arc" / "ARC-Challenge-Test.jsonl", 12)
    rows = [{"question": f"which {i}", "answer": i % 4, "choices": ["one", "two", "the army", "a song"]} for i in range(6)]
    for split in ("test", "dev"):
        write_lines(folder / "mmlu" / "anatomy" / f"{split}.jsonl", map(json.dumps, rows))
    return folder


SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}


@pytest.fixture(scope="module")
def my_model(tiny_model):
    """Layers enough that six may go, and room for the 576 tokens of `bench`."""
    return tiny_model("llama", num_hidden_layers=7, max_position_embeddings=576, **SMALL)


@pytest.fixture(scope="module")
def default_model(tiny_model, tmp_path_factory):
    """In the place of SmolLM2: layers enough that 24 of them may remain, and a chat template."""
    folder = tmp_path_factory.mktemp("default") / "SmolLM2-135M-Instruct"
    shutil.copytree(tiny_model("llama", num_hidden_layers=26, max_position_embeddings=64, tie_word_embeddings=True, **SMALL), folder)
    (folder / "chat_template.jinja").write_text("{% for message in messages %}{{ message.content }}\n{% endfor %}")
    return folder


@pytest.fixture
def gguf_file(run, page, tiny_model, tmp_path_factory):
    positions = 1024 if page == "docs/performance.md" else 576  # the windows of that page
    model = tiny_model("llama", num_hidden_layers=2, max_position_embeddings=positions, **SMALL)
    path = tmp_path_factory.mktemp("gguf") / "SmolLM2-135M-Instruct.Q4_1.gguf"
    run("export", model, "--gguf", "--type", "q4_1", "-o", path)
    return path


@pytest.fixture(scope="module")
def hub(tiny_model):
    server = Hub()
    files = tiny_model("llama").iterdir()
    server.files["HuggingFaceTB/SmolLM2-135M"] = {file.name: file.read_bytes() for file in files}
    yield server
    server.close()


@pytest.fixture
def home(tmp_path, build_dir, my_model, gguf_file):
    """The folder in which a user stands: a checkout with a build, and the files that the pages name."""
    for name in ("configs", "examples", "tools"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    (tmp_path / "build").symlink_to(build_dir)
    shutil.copytree(my_model, tmp_path / "my-model")
    shutil.copy(gguf_file, tmp_path)
    (tmp_path / "train.txt").write_text(make_text(500, seed=14), encoding="utf-8")
    (tmp_path / "prompt.txt").write_text("The city of\n")
    return tmp_path


@pytest.fixture
def environment(home, binary, data, default_model, hub, tmp_path_factory):
    """A new user's variables: nothing of this machine's models, data and caches. Several threads would wait for each other
    most of the time, with models this small."""
    kept = {name: value for name, value in os.environ.items() if not re.match("DYNSLICE_|HF_|XDG_|TRANSFORMERS_|PYTEST_", name)}
    return {**kept, "HOME": str(tmp_path_factory.mktemp("home")), "PATH": f"{binary.parent}:{os.environ['PATH']}",
            "DYNSLICE_MODEL": str(default_model), "DYNSLICE_DATA_DIR": str(data), "HF_ENDPOINT": hub.url(),
            "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "OMP_NUM_THREADS": "1", "PWD": str(home)}  # fmt: skip


class Terminal:
    """Runs commands one after the other: variables and the folder are those that the last one left."""

    def __init__(self, environment, state):
        self.environment = environment
        self.state = state

    def run(self, block, command):
        if block.language in SHELLS:
            self.call(block, command, [*SHELLS[block.language], command, self.state])
            self.environment = dict(entry.split("=", 1) for entry in self.state.read_text().split("\0") if entry)
        elif block.language == "python":
            self.run_python(block, command)
        else:
            assert "recipe" in json.loads(command), f"{block.where}: this test knows no JSON but recipes"
            recipe = pathlib.Path(self.environment["PWD"]) / f"recipe-{block.line}.json"
            recipe.write_text(command)
            model = self.environment["DYNSLICE_MODEL"]
            self.call(block, command, ["dynslice", "run", recipe, model, "-o", recipe.with_suffix("")])

    def run_python(self, block, command):
        """In this process, which has imported transformers already: that takes long."""
        with contextlib.chdir(self.environment["PWD"]):
            try:
                exec(compile(command, block.where, "exec"), {})
            except Exception:
                pytest.fail(f"{block.where}\n{command}\n{traceback.format_exc()}", pytrace=False)

    def call(self, block, command, arguments):
        __tracebackhide__ = True  # a report of this frame would print the whole environment
        done = subprocess.run([str(part) for part in arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              env=self.environment, cwd=self.environment["PWD"], timeout=300)
        if done.returncode != 0:
            pytest.fail(f"{block.where}: exit code {done.returncode}\n{command}\n--- stdout\n{done.stdout[-2000:]}\n"
                        f"--- stderr\n{done.stderr[-4000:]}", pytrace=False)


def substituted(command):
    for part, instead, _ in SUBSTITUTIONS:
        command = command.replace(part, instead)
    return command


@pytest.mark.parametrize("page", sorted({block.page for block in RUN_HERE}))
def test_the_commands_of_a_page_run_as_they_stand(page, environment, tmp_path_factory):
    terminal = Terminal(environment, tmp_path_factory.mktemp("state") / "variables")
    left_out = []
    for block in RUN_HERE:
        if block.page != page:
            continue
        if block.language == "zsh" and shutil.which("zsh") is None:
            left_out.append(block.where)
            continue
        for command in commands_of(block):
            terminal.run(block, substituted(command))
    if left_out:
        pytest.skip(f"SKIPPED: all ran but {left_out}: zsh is not installed; tools/setup.sh --tests installs it")


@pytest.mark.parametrize("page", [None])
def test_a_command_that_fails_is_reported_with_its_code_and_message(environment, tmp_path_factory):
    terminal = Terminal(environment, tmp_path_factory.mktemp("state") / "variables")
    block = Block("page", 1, "sh", "", None)
    terminal.run(block, "export WHERE=here && mkdir inner && cd inner")
    terminal.run(block, 'test "$WHERE" = here && test "${PWD##*/}" = inner')
    with pytest.raises(pytest.fail.Exception, match=r"page:1: exit code 2\n(.|\n)*--no-such-option"):
        terminal.run(block, "dynslice score --no-such-option")
    for command in ("false | cat", "for i in 1 2; do test $i = 2; done", "source <(echo true && false)"):
        with pytest.raises(pytest.fail.Exception, match="exit code 1"):
            terminal.run(block, command)
