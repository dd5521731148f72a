"""Completion in bash, zsh and fish, by running these shells."""

import os
import pty
import re
import shutil
import signal
import subprocess

import pytest

from conftest import Reader

SHELLS = ["bash", "zsh", "fish"]


def shell_program(name):
    program = shutil.which(name)
    if program is None:
        pytest.skip(f"SKIPPED: {name} is not installed; tools/setup.sh --tests installs it")
    return program


@pytest.fixture(scope="module")
def scripts(run, tmp_path_factory):
    """The three scripts, as their installers would have them."""
    folder = tmp_path_factory.mktemp("completion")
    for shell, name in zip(SHELLS, ["dynslice", "_dynslice", "dynslice.fish"]):
        (folder / name).write_text(run("completion", shell).stdout)
    return folder


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """A folder to complete in."""
    folder = tmp_path_factory.mktemp("paths")
    (folder / "my-model").mkdir()
    for name in ("weights.gguf", "notes.txt", "two words.json"):
        (folder / name).touch()
    return folder


BASH_WORD = re.compile(r"[=:]+|[^\s=:]+")  # as COMP_WORDBREAKS cuts them


def complete_in_bash(scripts, line, folder, breaks="\"'><=;|&(:"):
    """What _dynslice offers at the end of the line."""
    pattern = BASH_WORD if ":" in breaks else re.compile(r"\S+")
    words = pattern.findall(line) + ([""] if line.endswith(" ") else [])
    program = ('source "$1"; COMP_WORDBREAKS=$2; shift 2; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _dynslice; '
               'printf "%s\\n" "${COMPREPLY[@]}"')
    done = subprocess.run([shell_program("bash"), "--norc", "-c", program, "bash", scripts / "dynslice", breaks, *words],
                          capture_output=True, text=True, cwd=folder, check=True)
    assert done.stderr == ""
    return sorted(done.stdout.split("\n")[:-1]) if done.stdout != "\n" else []


def complete_in_fish(scripts, line, folder):
    program = 'source $argv[1]; complete -C $argv[2]'
    done = subprocess.run([shell_program("fish"), "--no-config", "-c", program, scripts / "dynslice.fish", line],
                          capture_output=True, text=True, cwd=folder, check=True)
    assert done.stderr == ""
    return sorted(offer.split("\t")[0] for offer in done.stdout.splitlines())


class Terminal:
    """An interactive shell, typed into. `told` is what it writes to its descriptor number TOLD."""

    def __init__(self, command, folder, environment):
        told, tells = os.pipe()
        self.pid, self.file = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            os.dup2(tells, TOLD)  # which is inherited
            os.execve(command[0], [str(part) for part in command], environment)
        os.close(tells)
        self.shown, self.told = Reader(self.file), Reader(told)

    def type(self, text):
        os.write(self.file, text.encode())

    def close(self):
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.file)
        os.close(self.told.descriptor)


TOLD = 9
# A tab completes as ever, and the shell tells when that is done: keys that come while a completion runs could be taken
# for its menu.
BASH_TELLS = rf"""bind '"\C-x1": complete'; bind -x '"\C-x2": echo completed >&{TOLD}'; bind '"\t": "\C-x1\C-x2"'"""
ZSH_TELLS = rf"complete-and-tell() {{ zle expand-or-complete; print -u {TOLD} completed }}; zle -N complete-and-tell; bindkey '^I' complete-and-tell"


def type_in(command, folder, scripts, line, home):
    """The command line that a shell makes of what is typed; a tab completes."""
    environment = {"PATH": os.environ["PATH"], "TERM": "dumb", "HOME": str(home), "LC_ALL": "C.UTF-8"}
    terminal = Terminal(command, folder, environment)
    try:
        if "zsh" in str(command[0]):
            terminal.type(f"PS1='ready> '; unsetopt zle_bracketed_paste beep; fpath=({scripts} $fpath); autoload -Uz "
                          f"compinit && compinit -u -D; {ZSH_TELLS}; print is''set\r")
        else:
            terminal.type(f"PS1='ready> '; bind 'set bell-style none'; source {scripts}/dynslice; {BASH_TELLS}; echo is''set\r")
        terminal.shown.wait_for("isset\r?\n")
        terminal.shown.wait_for("ready> ")
        for part in re.split("(\t)", line):
            terminal.type(part)
            if part == "\t":
                terminal.told.wait_for("completed\n")
        terminal.type("\x01echo 'made of it:' \r")
        shown = terminal.shown.wait_for(r"made of it: [^\r\n']*\r?\n")
        return re.search(r"made of it: ([^\r\n']*)\r?\n$", shown).group(1).strip()
    finally:
        terminal.close()


# ---- bash


@pytest.mark.parametrize(
    "line, offers",
    [
        ("dynslice sc", ["score"]),
        ("dynslice slice --allocate ", ["blend", "constant", "loss", "lr", "search", "softmax", "spectrum", "uniform"]),
        ("dynslice slice --allocate=", ["blend", "constant", "loss", "lr", "search", "softmax", "spectrum", "uniform"]),
        ("dynslice slice --allocate=con", ["constant"]),
        ("dynslice slice --basis ", ["block", "global", "layer"]),
        ("dynslice plan --directions ", ["energy", "loss", "places"]),
        ("dynslice slice --refit ", ["all", "dense", "none", "self"]),
        ("dynslice slice my-model --allo", ["--allocate"]),
        ("dynslice plan --base a", ["auto"]),
        ("dynslice plan --hel", ["--help", "--help-all"]),
        ("dynslice slice -o plan --dev", ["--device"]),  # the value of -o is no verb
        ("dynslice score --metric ", ["angular", "bi", "cka", "lim", "lr", "zd"]),
        ("dynslice score --calib wikitext2:t", ["test", "train"]),  # bash replaces what stands behind the colon
        ("dynslice score --calib=wikitext2:v", ["validation"]),
        ("dynslice score --calib no", ["notes.txt"]),
        ("dynslice score --calib-range 5:9 --prese", ["--preset"]),
        ("dynslice score --calib-range :9 --prese", ["--preset"]),
        ("dynslice inspect ", ["my-model", "weights.gguf"]),
        ("dynslice inspect tw", []),
        ("dynslice plan --scores tw", ["two words.json"]),
        ("dynslice slice -o ", ["my-model"]),
        ("dynslice score --threads ", []),
        ("dynslice completion ", ["bash", "fish", "zsh"]),
        ("dynslice completion bash ", []),
    ],
)
def test_bash_offers_verbs_options_values_and_paths(scripts, paths, line, offers):
    assert complete_in_bash(scripts, line, paths) == offers


def test_bash_without_colon_and_equals_among_its_word_breaks(scripts, paths):
    breaks = " \t\n\"'><;|&("
    assert complete_in_bash(scripts, "dynslice score --calib wikitext2:v", paths, breaks) == ["wikitext2:validation"]
    assert complete_in_bash(scripts, "dynslice slice --allocate=c", paths, breaks) == ["--allocate=constant"]
    assert complete_in_bash(scripts, "dynslice slice --plan=tw", paths, breaks) == ["--plan=two words.json"]


def own_help(run, verb):
    """What --help-all says of the verb itself, without the verbs below it."""
    return run(*verb.split(), "--help-all").stdout.split("\nUsage:")[1]


def options_in_help(run, verb):
    return set(re.findall(r"^  (?:-\w,)?(--[a-z-]+)", own_help(run, verb), re.MULTILINE))


def verbs_in_help(run):
    return re.findall(r"^  ([a-z]+)", run("--help").stdout.split("Verbs:")[1], re.MULTILINE)


def test_every_verb_and_option_is_offered_by_every_shell(run, scripts, paths):
    verbs = verbs_in_help(run)
    assert len(verbs) > 5 and complete_in_bash(scripts, "dynslice ", paths) == sorted(verbs)
    assert complete_in_fish(scripts, "dynslice ", paths) == sorted(verbs)
    zsh = (scripts / "_dynslice").read_text()
    for verb in verbs:
        options = options_in_help(run, verb)
        assert {"--help", "--help-all"} <= options
        assert options == {word for word in complete_in_bash(scripts, f"dynslice {verb} -", paths) if word[1] == "-"}
        assert options == {word for word in complete_in_fish(scripts, f"dynslice {verb} --", paths)}
        function = re.search(rf"^_dynslice_{verb}\(\) {{(.*?)^}}", zsh, re.MULTILINE | re.DOTALL).group(1)
        assert options == set(re.findall(r"(--[a-z-]+)=?\[", function))


def test_bash_completes_in_a_terminal(scripts, paths, tmp_path):
    command = [shell_program("bash"), "--norc", "--noprofile", "-i"]
    made = type_in(command, paths, scripts, "dynslice sl\t--allo\tcon\t--calib=wikitext2:v\t--scores two\t", tmp_path)
    # echo takes the backslash away.
    assert made == "dynslice slice --allocate constant --calib=wikitext2:validation --scores two words.json"


# ---- zsh


def test_zsh_takes_the_script(scripts):
    subprocess.run([shell_program("zsh"), "-n", scripts / "_dynslice"], check=True)


def test_zsh_may_source_the_script(scripts, tmp_path):
    program = 'autoload -Uz compinit && compinit -u -D; source "$1"; print -r -- $_comps[dynslice]'
    done = subprocess.run([shell_program("zsh"), "-f", "-c", program, "zsh", scripts / "_dynslice"], capture_output=True,
                          text=True, env={**os.environ, "HOME": str(tmp_path)}, check=True)
    assert done.stdout == "_dynslice\n" and done.stderr == ""


def test_zsh_completes_in_a_terminal(scripts, paths, tmp_path):
    command = [shell_program("zsh"), "-f", "-i"]
    typed = "dynslice sl\t--allo\tcon\t --calib=wikitext2:v\t --device cud\t --scores two\t"
    made = type_in(command, paths, scripts, typed, tmp_path)
    assert made == ("dynslice slice --allocate=constant --calib=wikitext2:validation --device cuda --scores two words.json")


# ---- fish


@pytest.mark.parametrize(
    "line, offers",
    [
        ("dynslice sc", ["score"]),
        ("dynslice slice --allocate ", ["blend", "constant", "loss", "lr", "search", "softmax", "spectrum", "uniform"]),
        ("dynslice slice --allocate=con", ["--allocate=constant"]),
        ("dynslice slice -o plan --dev", ["--device"]),
        ("dynslice score --calib wikitext2:te", ["wikitext2:test"]),
        ("dynslice score --calib no", ["notes.txt"]),
        ("dynslice inspect wei", ["weights.gguf"]),
        ("dynslice slice -o my", ["my-model/"]),
        ("dynslice score --threads n", []),
        ("dynslice completion ", ["bash", "fish", "zsh"]),
    ],
)
def test_fish_offers_verbs_options_values_and_paths(scripts, paths, line, offers):
    assert complete_in_fish(scripts, line, paths) == offers


# ---- the verb


def test_an_unknown_shell_is_wrong_usage(run):
    result = run("completion", "tcsh", expect=2)
    assert "tcsh" in result.stderr and result.stdout == ""


def test_completion_needs_no_library(run_command, binary, tmp_path):
    alone = shutil.copy(binary, tmp_path / "dynslice")
    for shell in SHELLS:
        assert "slice" in run_command([alone, "completion", shell]).stdout
