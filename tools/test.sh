#!/usr/bin/env bash
# shellcheck disable=SC2317 # the exit after main makes it doubt every function that is only passed on
# Builds dynslice with its tests and runs them.
set -euo pipefail
# shellcheck source=tools/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
  cat <<USAGE
usage: tools/test.sh [-L unit|integration|interop] [-R REGEX] [-k EXPRESSION] [--no-setup] [--no-apt] [--build-dir DIR]
                     [--jobs N] [--help]

  -L LABEL         only the tests with this label
  -R REGEX         only the parts whose name matches: unit.ROOM, integration, interop
  -k EXPRESSION    of integration and interop only the tests that pytest's -k selects, such as "resume and slice"
  --no-setup       do not install or build: run what is in the build folder
  --no-apt         install no Debian packages
  --build-dir DIR  where to build (default: build/)
  --jobs N         compilers, and tests, at a time (default: one a core, fewer when memory is short)

Environment: DYNSLICE_DATA_DIR, a folder with wikitext-2-raw/ and the like: tests that need it are skipped without.
DYNSLICE_TEST_MODEL and DYNSLICE_TEST_GEMMA, GGUF files (default: those of tools/fetch_model.sh). DYNSLICE_TEST_DEVICE,
the device of the tests named Cuda… (default: cuda). DYNSLICE_NO_SKIP=1 makes a skipped test a failure, but for those
that need a CUDA device where there is no NVIDIA driver. The exit code is CTest's, or 1 when tests were skipped that may not be.
USAGE
}

with_setup=yes
build_dir=$repo_root/build
jobs=$(default_jobs)
select=()
setup_options=()

parse_options() {
  while [[ $# -gt 0 ]]; do
    case $1 in
      -L | -R) needs_value "$1" "$@" && select+=("$1" "$2") && shift ;;
      -k) needs_value "$1" "$@" && export PYTEST_ADDOPTS="-k '$2'" && shift ;;
      --no-setup) with_setup=no ;;
      --no-apt) setup_options+=(--no-apt) ;;
      --build-dir) needs_value "$1" "$@" && build_dir=$(realpath -m "$2") && shift ;;
      --jobs) needs_value "$1" "$@" && jobs=$2 && shift ;;
      -h | --help) usage && exit 0 ;;
      *) die 2 "unknown option '$1'; see --help" ;;
    esac
    shift
  done
}

# Where the tests find what they compare with. What is missing stays unset, and the tests say so.
export_peers() {
  local bin
  bin=$(llama_dir)/bin
  if [[ -z ${DYNSLICE_TEST_MODEL:-} && -f $(model_path) ]]; then
    DYNSLICE_TEST_MODEL=$(model_path)
    export DYNSLICE_TEST_MODEL
  fi
  if [[ -z ${DYNSLICE_TEST_GEMMA:-} && -f $(model_path gemma) ]]; then
    DYNSLICE_TEST_GEMMA=$(model_path gemma)
    export DYNSLICE_TEST_GEMMA
  fi
  if [[ -z ${DYNSLICE_LLAMA_PERPLEXITY:-} && -x $bin/llama-perplexity ]]; then
    export DYNSLICE_LLAMA_PERPLEXITY=$bin/llama-perplexity DYNSLICE_LLAMA_QUANTIZE=$bin/llama-quantize
  fi
  if [[ -z ${DYNSLICE_OLD_TRANSFORMERS:-} && -d $(old_transformers_dir) ]]; then
    DYNSLICE_OLD_TRANSFORMERS=$(old_transformers_dir)
    export DYNSLICE_OLD_TRANSFORMERS
  fi
  say "data: ${DYNSLICE_DATA_DIR:-none (DYNSLICE_DATA_DIR is not set)}"
  say "model: ${DYNSLICE_TEST_MODEL:-none (DYNSLICE_TEST_MODEL is not set, and tools/fetch_model.sh was not run)}"
  say "second model: ${DYNSLICE_TEST_GEMMA:-none (DYNSLICE_TEST_GEMMA is not set, and tools/fetch_model.sh gemma was not run)}"
  say "older transformers: ${DYNSLICE_OLD_TRANSFORMERS:-none (tools/setup.sh --tests installs it)}"
  say "llama.cpp: ${DYNSLICE_LLAMA_PERPLEXITY:-none (tools/setup.sh --tests builds it)}"
}

# The names of skipped tests, from the JUnit files of CTest, of every room's unit tests and of every pytest run; without
# an NVIDIA driver not those that need a CUDA device (tools/gpu_check.sh runs them).
skipped_tests() {
  local device=no
  has_nvidia_driver && device=yes
  python3 - "$build_dir/junit" "$device" <<'PYTHON'
import pathlib, sys
import xml.etree.ElementTree as xml

for path in sorted(pathlib.Path(sys.argv[1]).glob("*.xml")):
    for case in xml.parse(path).iter("testcase"):
        skip = case.find("skipped")
        name = case.get("name") if path.name == "ctest.xml" else f"{path.stem}: {case.get('classname')}.{case.get('name')}"
        if skip is not None and not (sys.argv[2] == "no" and " Cuda" in name):
            print(name, "-", (skip.get("message") or "no reason given").splitlines()[-1])
PYTHON
}

main() {
  parse_options "$@"
  local set_up tested
  if [[ -n ${DYNSLICE_DATA_DIR:-} ]]; then
    DYNSLICE_DATA_DIR=$(realpath -m "$DYNSLICE_DATA_DIR")
    export DYNSLICE_DATA_DIR
  fi
  if [[ $with_setup == yes ]]; then
    "$repo_root/tools/setup.sh" --tests --build-dir "$build_dir" --jobs "$jobs" "${setup_options[@]}"
  fi
  set_up=$SECONDS
  [[ -f $build_dir/CTestTestfile.cmake ]] || die 4 "$build_dir has no tests; run tools/setup.sh --tests, or tools/test.sh without --no-setup"
  export_peers

  rm -rf "$build_dir/junit"
  mkdir -p "$build_dir/junit"
  say "running the tests, $jobs at a time"
  status=0
  ctest --test-dir "$build_dir" --output-on-failure --no-tests=error -j "$jobs" --output-junit "$build_dir/junit/ctest.xml" \
    "${select[@]}" </dev/null || status=$?
  tested=$SECONDS
  python3 "$repo_root/tools/durations.py" "$build_dir/junit"
  say "$set_up s to set up and build, $((tested - set_up)) s to test"

  if [[ ${DYNSLICE_NO_SKIP:-0} == 1 ]]; then
    skipped=$(skipped_tests)
    if [[ -n $skipped ]]; then
      say "error: tests were skipped, which DYNSLICE_NO_SKIP=1 forbids:"
      printf '%s\n' "$skipped" | sed 's/^/    /' >&2
      [[ $status -ne 0 ]] || status=1
    fi
  fi
  return "$status"
}

# On one line: bash reads a script as it goes, and this one may be replaced while it runs.
main "$@"; exit
