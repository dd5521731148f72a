"""What `cmake --install` and `pip install .` put in place, used from there."""

import importlib.util
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def cache(build_dir):
    """What CMake found for the build that is tested."""
    lines = (build_dir / "CMakeCache.txt").read_text().splitlines()
    return dict(re.match(r"([^:#/]+):[A-Z]+=(.*)", line).groups() for line in lines if re.match(r"[^:#/]+:[A-Z]+=", line))


@pytest.fixture(scope="session")
def installed(run_command, build_dir, tmp_path_factory):
    prefix = tmp_path_factory.mktemp("installed")
    run_command(["cmake", "--install", build_dir, "--prefix", prefix])
    return prefix


@pytest.fixture
def clean_environment():
    """Nothing that would lead to the build's libraries by another way."""
    names = ("LD_LIBRARY_PATH", "LIBTORCH_ROOT", "PYTHONPATH", "CMAKE_PREFIX_PATH", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if name not in names}


def run_clean(command, environment, **options):
    done = subprocess.run([str(part) for part in command], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          env=environment, timeout=1800, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


# ---- cmake --install


def test_the_installed_program_runs(installed, clean_environment, tiny_model):
    # Seen through a link, as package managers make them.
    link = installed / "elsewhere"
    link.symlink_to(installed / "bin" / "dynslice")
    for program in (installed / "bin" / "dynslice", link):
        facts = json.loads(run_clean([program, "inspect", tiny_model("llama"), "--json"], clean_environment))
        assert facts["layers"] == 4


def test_the_install_is_whole(installed, binary, run_command):
    for name in ("lib/libdynslice.so", "lib/libdynslice_cli.so", "lib/cmake/dynslice/dynsliceConfig.cmake",
                 "lib/cmake/dynslice/dynsliceConfigVersion.cmake", "lib/cmake/dynslice/FindLibTorch.cmake"):
        assert (installed / name).is_file(), name
    public = {path.relative_to(REPOSITORY) for path in (REPOSITORY / "include").rglob("*.h")}
    assert public == {path.relative_to(installed) for path in (installed / "include").rglob("*.h")}
    for name, arguments in {"man/man1/dynslice.1": ["reference", "man"],
                            "bash-completion/completions/dynslice": ["completion", "bash"],
                            "zsh/site-functions/_dynslice": ["completion", "zsh"],
                            "fish/vendor_completions.d/dynslice.fish": ["completion", "fish"]}.items():
        assert (installed / "share" / name).read_text() == run_command([binary, *arguments]).stdout, name


def configure(source, build, installed, cache, **options):
    command = ["cmake", "-S", source, "-B", build, "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={installed}",
               f"-DCMAKE_CXX_COMPILER={cache['CMAKE_CXX_COMPILER']}"]
    if shutil.which("ccache"):
        command.append("-DCMAKE_CXX_COMPILER_LAUNCHER=ccache")
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)


def test_the_example_builds_against_the_installed_package(installed, cache, clean_environment, tmp_path, tiny_model,
                                                          text_file, run):
    # A copy: nothing in it may lean on the repository around it.
    shutil.copytree(REPOSITORY / "examples" / "score_layers", tmp_path / "source")
    done = configure(tmp_path / "source", tmp_path / "build", installed, cache, env=clean_environment)
    assert done.returncode == 0, done.stdout + done.stderr
    run_clean(["cmake", "--build", tmp_path / "build"], clean_environment)
    model = tiny_model("llama")
    shown = run_clean([tmp_path / "build" / "score_layers", model, text_file], clean_environment)
    expected = run("score", model, "--calib", text_file, "--samples", "8", "--seqlen", "256", "--json").json()["values"]
    values = [float(value) for value in re.findall(r"^layer \d+: (\S+)$", shown, re.MULTILINE)]
    # Six digits are printed; program and example may cut the windows into other chunks.
    assert values == pytest.approx(expected, abs=2e-6)


def test_all_public_headers_compile_from_where_they_are_installed(installed, cache, clean_environment, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    headers = sorted(path.relative_to(installed / "include") for path in (installed / "include").rglob("*.h"))
    (source / "headers.cpp").write_text("".join(f"#include <{header}>\n" for header in headers))
    (source / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.25)\nproject(headers LANGUAGES CXX)\nfind_package(dynslice REQUIRED)\n"
        "add_library(headers OBJECT headers.cpp)\n"
        "target_compile_options(headers PRIVATE -Wall -Wextra -Werror)\n"
        "target_link_libraries(headers PRIVATE dynslice::dynslice)\n")
    done = configure(source, tmp_path / "build", installed, cache, env=clean_environment)
    assert done.returncode == 0, done.stdout + done.stderr
    run_clean(["cmake", "--build", tmp_path / "build"], clean_environment)


def test_another_version_of_the_package_is_refused(installed, cache, clean_environment, tmp_path):
    (tmp_path / "CMakeLists.txt").write_text("cmake_minimum_required(VERSION 3.25)\nproject(other LANGUAGES CXX)\n"
                                             "find_package(dynslice 99.0 REQUIRED)\n")
    done = configure(tmp_path, tmp_path / "build", installed, cache, env=clean_environment)
    assert done.returncode != 0 and 'compatible with requested version "99.0"' in " ".join(done.stderr.split())


def test_another_libtorch_is_refused(installed, cache, clean_environment, tmp_path):
    """C++ knows no binary interface across versions of LibTorch."""
    torch = pathlib.Path(cache["LibTorch_INCLUDE_DIR"]).parent
    other = tmp_path / "torch"
    version = other / "include" / "torch" / "headeronly" / "version.h"
    version.parent.mkdir(parents=True)
    version.write_text("".join(f"#define TORCH_VERSION_{part} {number}\n"
                               for part, number in [("MAJOR", 2), ("MINOR", 99), ("PATCH", 0)]))
    (other / "lib").symlink_to(torch / "lib")
    (other / "include" / "ATen").symlink_to(torch / "include" / "ATen")
    done = configure(REPOSITORY / "examples" / "score_layers", tmp_path / "build", installed, cache,
                     env={**clean_environment, "LIBTORCH_ROOT": str(other)})
    said = " ".join(done.stderr.split())
    assert done.returncode != 0 and "it was built with LibTorch" in said and "is 2.99.0" in said, done.stderr


# ---- pip install .


@pytest.fixture(scope="session")
def wheelhouse():
    """scikit-build-core and what it needs, fetched by tools/setup.sh: pip then needs no network."""
    folder = pathlib.Path(sys.prefix) / "wheelhouse"
    if not folder.is_dir():
        pytest.skip(f"SKIPPED: {folder} is not there; tools/setup.sh --tests makes it")
    return folder


@pytest.fixture(scope="session")
def environment_with_torch(tmp_path_factory):
    """A fresh virtual environment that sees the torch of this one, and nothing of pip's downloads."""
    folder = tmp_path_factory.mktemp("python") / "venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    site = next(folder.glob("lib/python*/site-packages"))
    torch = pathlib.Path(importlib.util.find_spec("torch").origin).parents[1]
    folders = {str(torch), sysconfig.get_path("purelib")}
    (site / "torch.pth").write_text("import site; " + "; ".join(f"site.addsitedir({path!r})" for path in folders) + "\n")
    return folder


def check_torch_beside_the_package_is_preferred(cache, environment, clean_environment):
    site = next(environment.glob("lib/python*/site-packages"))
    library = site / "dynslice" / "lib" / "libdynslice.so"
    built_with = pathlib.Path(cache["LibTorch_INCLUDE_DIR"]).parent
    assert f"=> {built_with}/lib/libtorch_cpu.so" in run_clean(["ldd", library], clean_environment)
    beside = site / "torch"
    beside.symlink_to(built_with)
    try:
        loaded = re.search(r"libtorch_cpu\.so => (\S+)", run_clean(["ldd", library], clean_environment)).group(1)
    finally:
        beside.unlink()  # the environment is shared, and one of its tests needs it without torch
    assert os.path.normpath(loaded) == str(beside / "lib" / "libtorch_cpu.so")


def test_pip_installs_the_program_for_the_torch_that_is_there(build_dir, cache, wheelhouse, environment_with_torch,
                                                              clean_environment, tiny_model, tmp_path):
    # Beside the build folder, with its compiler and its warnings: ccache then has every object already, whether
    # or not it knows paths as relative ones.
    work = build_dir.with_name(build_dir.name + "-pip")
    settings = [f"build-dir={work}", f"cmake.define.CMAKE_CXX_COMPILER={cache['CMAKE_CXX_COMPILER']}",
                f"cmake.define.DYNSLICE_WERROR={cache['DYNSLICE_WERROR']}"]
    # Build isolation is on, as in a plain `pip install .`: torch is visible to the environment, not to the build.
    # --no-deps: torch's own needs are not this test's.
    command = [environment_with_torch / "bin" / "python", "-m", "pip", "install", "--no-index", "--find-links", wheelhouse,
               "--no-deps", *[part for setting in settings for part in ("-C", setting)], REPOSITORY]
    try:
        run_clean(command, {**clean_environment, "CMAKE_BUILD_PARALLEL_LEVEL": "2"}, cwd=tmp_path)
        assert not list(work.glob("bin/unit_*"))
        assert (work / "CMakeCache.txt").read_text().find("DYNSLICE_TESTS:BOOL=OFF") > 0
    finally:
        shutil.rmtree(work, ignore_errors=True)

    program = environment_with_torch / "bin" / "dynslice"
    python = environment_with_torch / "bin" / "python"
    version = run_clean([program, "--version"], clean_environment)
    assert version == run_clean([build_dir / "bin" / "dynslice", "--version"], clean_environment)
    facts = json.loads(run_clean([program, "inspect", tiny_model("llama"), "--json"], clean_environment, cwd=tmp_path))
    assert facts["layers"] == 4
    assert run_clean([python, "-m", "dynslice", "--version"], clean_environment, cwd=tmp_path) == version
    failed = subprocess.run([program, "inspect", tmp_path / "nothing"], env=clean_environment, capture_output=True)
    assert failed.returncode == 4
    assert (environment_with_torch / "share" / "man" / "man1" / "dynslice.1").is_file()

    ask = ("import importlib.metadata as m; d = m.distribution('dynslice'); "
           "print(d.version, d.requires, d.read_text('WHEEL').count('py3-none-'))")
    assert run_clean([python, "-c", ask], clean_environment).split() == [version.split()[1], "['torch>=2.6']", "1"]
    check_torch_beside_the_package_is_preferred(cache, environment_with_torch, clean_environment)


def test_pip_says_that_torch_is_missing(wheelhouse, environment_with_torch, clean_environment, tmp_path):
    seen = next(environment_with_torch.glob("lib/python*/site-packages/torch.pth"))
    hidden = seen.rename(seen.with_suffix(".hidden"))
    try:
        command = [environment_with_torch / "bin" / "python", "-m", "pip", "wheel", "--no-index", "--find-links", wheelhouse,
                   "--no-deps", "--wheel-dir", tmp_path, REPOSITORY]
        done = subprocess.run(command, env=clean_environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    finally:
        hidden.rename(seen)
    assert done.returncode != 0 and not list(tmp_path.glob("*.whl"))
    assert "Could NOT find LibTorch" in done.stderr + done.stdout and "pip install torch" in done.stderr + done.stdout
