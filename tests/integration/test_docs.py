"""The man page and docs/options.md, which are made from the program's definitions; and docs/cli.md, which is not."""

import pathlib
import re
import shutil
import subprocess

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def options_page(run):
    return run("reference", "markdown").stdout


@pytest.fixture(scope="module")
def man_page(run):
    return run("reference", "man").stdout


def verbs_in_help(run):
    return re.findall(r"^  ([a-z]+)", run("--help").stdout.split("Verbs:")[1], re.MULTILINE)


def test_the_page_of_options_is_current(options_page):
    written = (REPOSITORY / "docs" / "options.md").read_text()
    assert written == options_page, "docs/options.md is stale: run tools/update_docs.sh and commit what it wrote"


def test_every_verb_and_option_of_help_is_in_both(run, options_page, man_page):
    man = man_page.replace("\\", "")
    for verb in verbs_in_help(run):
        section = re.search(rf"^## {verb}\n(.*?)(?=^## )", options_page, re.MULTILINE | re.DOTALL).group(1)
        man_section = re.search(rf"^\.SS dynslice {verb}\b(.*?)(?=^\.S[SH])", man, re.MULTILINE | re.DOTALL).group(1)
        options = set(re.findall(r"^  (?:-\w,)?(--[a-z-]+)", run(verb, "--help").stdout, re.MULTILINE)) - {"--help"}
        assert options == set(re.findall(r"^\| `(?:-\w, )?(--[a-z-]+)", section, re.MULTILINE))
        assert options == set(re.findall(r"^(?:fB-\wfR, )?fB(--[a-z-]+)fR", man_section, re.MULTILINE))


def test_every_help_text_says_something(options_page):
    """One style: a phrase that begins small, without a full stop; the default apart."""
    rows = re.findall(r"^\| `([^`]*)` \| (.*?)(?<!\\) \| ?(.*?) ?\|$", options_page, re.MULTILINE)
    assert len(rows) > 60
    for option, meaning, default in rows:
        assert len(meaning) > 8, option
        assert not meaning.endswith(".") or "Not together with" in meaning, option
        assert "(default" not in meaning, f"{option}: give the default with default_str or capture_default_str"
        assert meaning.isascii(), option
        if option[0] == "-":
            assert meaning[0].islower() or meaning.split()[0].isupper(), f"{option}: {meaning}"


def test_the_man_page_is_well_formed(man_page, tmp_path):
    groff = shutil.which("groff")
    if groff is None:
        pytest.skip("SKIPPED: groff is not installed; tools/setup.sh --tests installs it")
    page = tmp_path / "dynslice.1"
    page.write_text(man_page)
    done = subprocess.run([groff, "-man", "-Tascii", "-ww", "-P-cbou", page], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    for heading in ("NAME", "SYNOPSIS", "VERBS", "EXIT STATUS", "ENVIRONMENT", "EXAMPLES"):
        assert f"\n{heading}\n" in done.stdout
    assert "\\" not in done.stdout


def test_the_prose_names_only_options_that_exist(options_page):
    known = set(re.findall(r"--[a-z][a-z-]+", options_page)) | {"--help", "--version"}
    # Code spans that begin with an option: others are commands of other programs.
    spans = re.findall(r"`(-[^`]*)`", (REPOSITORY / "docs" / "cli.md").read_text())
    named = {option for span in spans for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", span)}
    assert len(named) > 5
    assert named <= known, f"docs/cli.md names options that no verb has: {sorted(named - known)}"


def test_the_prose_tells_of_every_verb(run):
    headings = " ".join(re.findall(r"^## (.*)$", (REPOSITORY / "docs" / "cli.md").read_text(), re.MULTILINE))
    missing = [verb for verb in verbs_in_help(run) if not re.search(rf"\b{verb}\b", headings)]
    assert not missing, f"docs/cli.md has no section about {missing}"


def test_the_command_that_updates_the_page_sees_staleness(build_dir, run_command, tmp_path):
    tool = REPOSITORY / "tools" / "update_docs.sh"
    run_command([tool, "--check", "--build-dir", build_dir])
    stale = tmp_path / "options.md"
    stale.write_text("# Every verb and option\n")
    result = run_command([tool, "--check", "--build-dir", build_dir, "--output", stale], expect=1)
    assert "stale" in result.stderr and stale.read_text() == "# Every verb and option\n"
    run_command([tool, "--no-build", "--build-dir", build_dir, "--output", stale])
    assert stale.read_text() == (REPOSITORY / "docs" / "options.md").read_text()
