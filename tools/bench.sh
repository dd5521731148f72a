#!/usr/bin/env bash
# Measures dynslice against its peers on one model, in turns; see docs/performance.md.
set -euo pipefail
# shellcheck source=tools/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
  cat <<USAGE
usage: tools/bench.sh [--only LIST] [--repeats N] [--windows N] [--model FILE] [--slicegpt DIR] [--slicegpt-python P]
                      [--json FILE] [--update-docs] [--threads N] [--build-dir DIR] [--help]

  --only LIST            of slice,eval,score,decode: what to measure (default: all, slice's peer with --slicegpt)
  --repeats N            rounds, in each of which everything runs once (default: 3); medians are reported
  --windows N            calibration windows of 1024 tokens for slice (default: 32); eval and score take a quarter
  --model FILE           a .gguf file (default: the small default model)
  --slicegpt DIR         a checkout of github.com/microsoft/TransformerCompression, the published procedure
  --slicegpt-python P    the Python that runs it (default: the test environment's; transformers 4.48 or newer)
  --json FILE            also write all figures there
  --update-docs          put the tables into docs/performance.md
  --threads N            CPU threads of every program (default: all cores)
  --build-dir DIR        where dynslice is built (default: build/)

Peers come from tools/setup.sh --tests (transformers, llama.cpp); rows of a peer that is not there are left out, which
is said. DYNSLICE_DATA_DIR must hold wikitext-2-raw/wiki.test.raw. Tables go to stdout. Nothing else should run.
USAGE
}

build_dir=$repo_root/build
model=${DYNSLICE_TEST_MODEL:-$(model_path)}
arguments=()

while [[ $# -gt 0 ]]; do
  case $1 in
    --only | --repeats | --windows | --slicegpt | --slicegpt-python | --json | --threads)
      needs_value "$1" "$@" && arguments+=("$1" "$2") && shift
      ;;
    --update-docs) arguments+=(--update-docs "$repo_root/docs/performance.md") ;;
    --model) needs_value "$1" "$@" && model=$2 && shift ;;
    --build-dir) needs_value "$1" "$@" && build_dir=$2 && shift ;;
    -h | --help) usage && exit 0 ;;
    *) die 2 "unknown option '$1'; see --help" ;;
  esac
  shift
done

[[ -x $build_dir/bin/dynslice ]] || die 4 "$build_dir/bin/dynslice is not there; run tools/setup.sh"
[[ -f $model ]] || die 4 "$model is not there; run tools/fetch_model.sh"
text=${DYNSLICE_DATA_DIR:-}/wikitext-2-raw/wiki.test.raw
[[ -f $text ]] || die 4 "DYNSLICE_DATA_DIR must be a folder with wikitext-2-raw/wiki.test.raw"

exec python3 "$repo_root/tools/bench_peers.py" --dynslice "$build_dir/bin/dynslice" --model "$model" --text "$text" \
  --llama "${DYNSLICE_LLAMA_BIN:-$(llama_dir)/bin}" --python "$(venv_dir)/bin/python" "${arguments[@]}"
