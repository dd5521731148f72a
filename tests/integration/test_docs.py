"""The man page, docs/options.md and docs/models.md, which the program makes; and the other pages, which it does not."""

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


OF_ALL_VERBS = {"--help", "--help-all"}  # described once, in front of the verbs


def own_help(run, verb):
    """What --help-all says of the verb itself, without the verbs below it."""
    return run(*verb.split(), "--help-all").stdout.split("\nUsage:")[1]


def verbs_in_help(run):
    return re.findall(r"^  ([a-z]+)", run("--help").stdout.split("Verbs:")[1], re.MULTILINE)


def test_the_page_of_options_is_current(options_page):
    written = (REPOSITORY / "docs" / "options.md").read_text()
    assert written == options_page, "docs/options.md is stale: run tools/update_docs.sh and commit what it wrote"


def test_the_page_of_models_is_current(run):
    written = (REPOSITORY / "docs" / "models.md").read_text()
    assert written == run("models", "--markdown").stdout, "docs/models.md is stale: run tools/update_docs.sh and commit what it wrote"


def test_every_verb_and_option_of_help_is_in_both(run, options_page, man_page):
    man = man_page.replace("\\", "")
    for verb in verbs_in_help(run):
        section = re.search(rf"^## {verb}\n(.*?)(?=^## )", options_page, re.MULTILINE | re.DOTALL).group(1)
        man_section = re.search(rf"^\.SS dynslice {verb}\b(.*?)(?=^\.S[SH])", man, re.MULTILINE | re.DOTALL).group(1)
        options = set(re.findall(r"^  (?:-\w,)?(--[a-z-]+)", own_help(run, verb), re.MULTILINE)) - OF_ALL_VERBS
        assert options == set(re.findall(r"^\| `(?:-\w, )?(--[a-z-]+)", section, re.MULTILINE))
        assert options == set(re.findall(r"^(?:fB-\wfR, )?fB(--[a-z-]+)fR", man_section, re.MULTILINE))


def test_help_itself_is_described_once(options_page, man_page):
    for option in OF_ALL_VERBS:
        assert len(re.findall(rf"^\| `[^`]*{option}`", options_page, re.MULTILINE)) == 1
        assert man_page.replace("\\", "").count(f"fB{option}fR") == 1


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


OPTION = r"(?<!\S)--[a-z][a-z_-]*"  # at the beginning of a word
# Pages written by hand, and options in them that are not dynslice's: pip's and lm_eval's.
MADE = ("options.md", "models.md")  # by the program
PROSE = [REPOSITORY / "README.md", *sorted(path for path in (REPOSITORY / "docs").rglob("*.md") if path.name not in MADE)]
OF_OTHER_PROGRAMS = {"--no-deps", "--no-build-isolation", "--force-reinstall", "--num_fewshot"}


def options_by_verb(options_page):
    """{"depth drop": {"--layers", ...}, ...}; `drop` alone, as tables have it, is the same as `depth drop`."""
    sections = re.findall(r"^## ([a-z ]+)\n(.*?)(?=^## )", options_page, re.MULTILINE | re.DOTALL)
    options = {verb: OF_ALL_VERBS | set(re.findall(r"^\| `(?:-\w, )?(--[a-z-]+)", text, re.MULTILINE)) for verb, text in sections}
    return options | {verb.removeprefix("depth "): known for verb, known in options.items()}


def code_spans(page):
    """Code within the text, and blocks that show the syntax of a command."""
    text = page.read_text(encoding="utf-8")
    syntax = re.findall(r"^```text\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    return [" ".join(span.replace("\\|", "|").split()) for span in spans] + [line for block in syntax for line in block.splitlines()]


def wrong_use(span, options):
    """What is wrong with a code span that is a command of dynslice, or None. Spans that are something else are right."""
    words = re.sub(r"[\[\]|]", " ", span).split()
    named = words[0] == "dynslice" if words else False
    words = words[1:] if named else words
    verb = " ".join(words[:2]) if " ".join(words[:2]) in options else words[0] if words else ""
    if verb not in options:
        return f"no verb {verb}" if named and verb.islower() and not verb.startswith("-") else None
    unknown = [option for option in re.findall(OPTION, " ".join(words)) if option not in options[verb]]
    return f"{verb} has no {unknown}" if unknown else None


def test_a_wrong_verb_or_option_is_found(options_page):
    options = options_by_verb(options_page)
    for span in ("dynslice slice --plan FILE", "drop --order ppl", "depth merge", "dynslice VERB --help", "cmake --install build",
                 "dynslice eval [MODEL] [--ppl TEXT]", "dynslice", "dynslice.json"):
        assert wrong_use(span, options) is None, span
    for span in ("dynslice slise --plan FILE", "slice --tasks piqa", "dynslice eval [MODEL] [--plan FILE]", "depth merge --order ppl"):
        assert wrong_use(span, options), span


def test_the_prose_names_only_verbs_and_options_that_exist(options_page):
    options, spans = options_by_verb(options_page), [(page, span) for page in PROSE for span in code_spans(page)]
    wrong = [f"{page.name}: `{span}`: {fault}" for page, span in spans if (fault := wrong_use(span, options))]
    assert not wrong, "\n".join(wrong)
    # Spans that begin with an option: of any verb, or of a tool.
    known = set().union(*options.values()) | {"--version"} | OF_OTHER_PROGRAMS
    for tool in (REPOSITORY / "tools").iterdir():
        known |= set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", tool.read_text(encoding="utf-8"))) if tool.is_file() else set()
    named = {(page.name, option) for page, span in spans if span.startswith("-") for option in re.findall(OPTION, span)}
    assert len(named) > 50
    unknown = sorted(use for use in named if use[1] not in known)
    assert not unknown, f"no verb and no tool has these options: {unknown}"


def anchors(page):
    """The names that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_link_within_the_repository_leads_somewhere():
    links = [(page, link) for page in PROSE for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))]
    inner = [(page, *link.partition("#")[::2]) for page, link in links if "://" not in link]
    assert len(inner) > 30
    for page, file, anchor in inner:
        target = page.parent / file if file else page
        assert target.exists(), f"{page.name}: {file} is not there"
        assert not anchor or anchor in anchors(target), f"{page.name}: {file} has no heading #{anchor}"


def test_the_readme_leads_to_every_page():
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    pages = [page.relative_to(REPOSITORY) for page in (REPOSITORY / "docs").rglob("*.md")]
    missing = [page for page in pages if f"]({page})" not in readme]
    assert not missing, f"README.md has no link to {missing}"


def test_the_prose_tells_of_every_verb(run):
    headings = " ".join(re.findall(r"^## (.*)$", (REPOSITORY / "docs" / "cli.md").read_text(), re.MULTILINE))
    missing = [verb for verb in verbs_in_help(run) if not re.search(rf"\b{verb}\b", headings)]
    assert not missing, f"docs/cli.md has no section about {missing}"


def test_the_command_that_updates_the_page_sees_staleness(build_dir, run_command, tmp_path):
    tool = REPOSITORY / "tools" / "update_docs.sh"
    run_command([tool, "--check", "--build-dir", build_dir])
    for name in MADE:
        shutil.copy(REPOSITORY / "docs" / name, tmp_path)
    stale = tmp_path / "options.md"
    stale.write_text("# Every verb and option\n")
    result = run_command([tool, "--check", "--build-dir", build_dir, "--folder", tmp_path], expect=1)
    assert "options.md is stale" in result.stderr and stale.read_text() == "# Every verb and option\n"
    run_command([tool, "--no-build", "--build-dir", build_dir, "--folder", tmp_path])
    for name in MADE:
        assert (tmp_path / name).read_text() == (REPOSITORY / "docs" / name).read_text()
