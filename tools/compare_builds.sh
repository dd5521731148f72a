#!/usr/bin/env bash
# Compares what two builds write. compare_builds.py does it, with the Python of the tests, which makes the tiny models.
set -euo pipefail
# shellcheck source=tools/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
  cat <<USAGE
usage: tools/compare_builds.sh [--only REGEX] [--list] [--keep FOLDER] [--threads N] [--help] OLD NEW

Runs the same commands with two builds of dynslice, and compares all that they write byte for byte, times and memory
aside: the proof that a change of the code changes nothing else. OLD and NEW are build folders, or programs.

  --only REGEX    only the commands that match; those that write what they read must match too
  --list          print the commands, and run nothing
  --keep FOLDER   leave what both builds wrote in this folder
  --threads N     threads of every command (default: 1)

Environment: DYNSLICE_TEST_MODEL, a GGUF file (default: the small default model, where it is in the cache).
Exit code: 0 nothing differs, 1 something does, 2 wrong usage, 4 no Python of the tests.
USAGE
}

main() {
  case ${1:-} in -h | --help) usage && exit 0 ;; esac
  local python=${DYNSLICE_TEST_PYTHON:-$(venv_dir)/bin/python}
  [[ -x $python ]] || die 4 "there is no Python of the tests; run tools/setup.sh --tests"
  if [[ -z ${DYNSLICE_TEST_MODEL:-} && -f $(model_path) ]]; then
    DYNSLICE_TEST_MODEL=$(model_path)
    export DYNSLICE_TEST_MODEL
  fi
  exec "$python" -B "$repo_root/tools/compare_builds.py" "$@"
}

main "$@"; exit
