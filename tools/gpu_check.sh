#!/usr/bin/env bash
# shellcheck disable=SC2317 # the exit after main makes it doubt every function that is only passed on
# Checks on a machine with a CUDA device that dynslice computes there what it computes on the CPU, and how fast.
set -euo pipefail
# shellcheck source=tools/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
  cat <<USAGE
usage: tools/gpu_check.sh [--model MODEL] [--text SPEC] [--samples N] [--seqlen N] [--quick] [--tests-only]
                          [--device cuda[:N]] [--no-build] [--build-dir DIR] [--output DIR] [--jobs N] [--help]

Builds with a CUDA LibTorch, runs the unit tests that compare device and CPU, then scores, slices, makes shallower,
heals, quantizes, evaluates and measures one model on both, in fp32, and prints what came out and how long it took. Fails when a test
fails, when plans or layers chosen differ, or when a perplexity differs by more than 0.2 % (0.5 % of
sliced models, 1 % of modular ones, 3 % with GPTQ).

  --model MODEL    a checkpoint folder or .gguf file (default: DYNSLICE_TEST_MODEL, else the small default model)
  --text SPEC      what to calibrate and evaluate on: a file, or wikitext2:test, the default, from DYNSLICE_DATA_DIR
  --samples N      windows to calibrate on, and as many after them to evaluate on (default: 32)
  --seqlen N       tokens a window (default: 1024)
  --quick          the same as --samples 8 --seqlen 512
  --tests-only     the unit tests alone; no model is needed
  --device DEVICE  the device (default: cuda)
  --no-build       use what is in the build folder
  --build-dir DIR  where to build (default: build-cuda/)
  --output DIR     where results go (default: build-cuda/gpu-check/); what an earlier run left there is replaced
  --jobs N         compilers at a time (default: one a core, fewer when memory is short)

LibTorch is that of LIBTORCH_ROOT, else the torch that python3 can import. Debian packages are those of
tools/setup.sh; nothing is installed.
USAGE
}

model=${DYNSLICE_TEST_MODEL:-}
text=wikitext2:test
samples=32
seqlen=1024
device=cuda
with_build=yes
with_model=yes
build_dir=$repo_root/build-cuda
output=
jobs=$(default_jobs)

parse_options() {
  while [[ $# -gt 0 ]]; do
    case $1 in
      --model) needs_value "$1" "$@" && model=$2 && shift ;;
      --text) needs_value "$1" "$@" && text=$2 && shift ;;
      --samples) needs_value "$1" "$@" && samples=$2 && shift ;;
      --seqlen) needs_value "$1" "$@" && seqlen=$2 && shift ;;
      --quick) samples=8 && seqlen=512 ;;
      --tests-only) with_model=no ;;
      --device) needs_value "$1" "$@" && device=$2 && shift ;;
      --no-build) with_build=no ;;
      --build-dir) needs_value "$1" "$@" && build_dir=$(realpath -m "$2") && shift ;;
      --output) needs_value "$1" "$@" && output=$(realpath -m "$2") && shift ;;
      --jobs) needs_value "$1" "$@" && jobs=$2 && shift ;;
      -h | --help) usage && exit 0 ;;
      *) die 2 "unknown option '$1'; see --help" ;;
    esac
    shift
  done
  output=${output:-$build_dir/gpu-check}
  model=${model:-$(model_path)}
  has_nvidia_driver || die 4 "no NVIDIA driver here (neither /proc/driver/nvidia nor nvidia-smi); this needs a CUDA device"
  [[ $with_model == no || -e $model ]] || die 4 "$model is not there; run tools/fetch_model.sh, or give --model"
}

# ---- Build -----------------------------------------------------------------------------------------------------

find_libtorch() {
  local libtorch=${LIBTORCH_ROOT:-}
  if [[ -z $libtorch ]]; then
    libtorch=$(python3 -c 'import importlib.util as u
spec = u.find_spec("torch")
print(spec.submodule_search_locations[0] if spec and spec.submodule_search_locations else "")' 2>/dev/null || true)
  fi
  [[ -n $libtorch ]] || die 4 "no LibTorch: set LIBTORCH_ROOT, or install a CUDA build of torch for python3"
  [[ -f $libtorch/lib/libtorch_cuda.so ]] || die 4 "the LibTorch in $libtorch has no CUDA; set LIBTORCH_ROOT to one that has"
  printf '%s\n' "$libtorch"
}

build() {
  local libtorch
  libtorch=$(find_libtorch)
  say "LibTorch: $libtorch"
  say "configuring in $build_dir"
  quietly gpu-configure cmake -S "$repo_root" -B "$build_dir" -G Ninja -DCMAKE_BUILD_TYPE=Release -DDYNSLICE_TESTS=ON \
    "-DLIBTORCH_ROOT=$libtorch" || die 3 "CMake could not configure the build"
  say "building with $jobs compiler(s)"
  quietly gpu-build ninja -C "$build_dir" -j "$jobs" || die 3 "the build failed"
}

# ---- Tests -----------------------------------------------------------------------------------------------------

# One process a room: loading a CUDA LibTorch takes longer than most tests.
run_tests() {
  local program log passed found=no failed=no
  for program in "$build_dir"/bin/unit_*; do
    [[ -x $program ]] || continue
    log=$output/$(basename "$program").log
    if ! DYNSLICE_TEST_DEVICE=$device "$program" --gtest_filter='Cuda*' --gtest_color=no >"$log" 2>&1 ||
      grep -q '^\[  SKIPPED \]' "$log"; then
      sed 's/^/    /' "$log" >&2
      failed=yes
    fi
    passed=$(grep -c '^\[       OK \]' "$log" || true)
    if [[ $passed -gt 0 ]]; then
      found=yes
      say "$(basename "$program"): $passed of its tests on $device passed"
    fi
  done
  [[ $failed == no ]] || return 1
  [[ $found == yes ]] || die 2 "$build_dir has no tests that compare device and CPU; build it with -DDYNSLICE_TESTS=ON"
}

# ---- Work ------------------------------------------------------------------------------------------------------

# measure NAME DEVICE DTYPE VERB...: the JSON of the verb, and how long the process took.
measure() {
  local name=$1 where=$2 dtype=$3 begin end
  shift 3
  begin=$(date +%s.%N)
  "$dynslice" "$@" --device "$where" --dtype "$dtype" --json --quiet >"$output/$name.json" ||
    die 1 "failed: dynslice $* --device $where --dtype $dtype"
  end=$(date +%s.%N)
  awk -v begin="$begin" -v end="$end" 'BEGIN { printf "%.2f\n", end - begin }' >"$output/$name.seconds"
}

evaluate() { # NAME DEVICE DTYPE MODEL
  measure "$1" "$2" "$3" eval "$4" --ppl "$text" --ppl-range "$((samples * seqlen)):" --samples "$samples" --seqlen "$seqlen"
}

# All verbs on one device in one dtype.
run_verbs() {
  local tag=$1 where=$2 dtype=$3 calibration=(--calib "$text" --samples "$samples" --seqlen "$seqlen" --force)
  local few=(--calib "$text" --samples 8 --seqlen 256 --force) layers to_go
  layers=$("$dynslice" inspect "$model" --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["layers"])')
  to_go=$(((layers + 4) / 5))
  say "$tag: score, slice, depth, heal, quantize, bench"
  measure "$tag-score" "$where" "$dtype" score "$model" --calib "$text" --samples "$samples" --seqlen "$seqlen"
  measure "$tag-cka" "$where" "$dtype" score "$model" --metric cka --calib "$text" --samples 8 --seqlen 256
  measure "$tag-slice" "$where" "$dtype" slice "$model" --avg 25% --allocate constant "${calibration[@]}" -o "$output/$tag-sliced"
  measure "$tag-modular" "$where" "$dtype" slice "$model" --preset best --target params=15% "${calibration[@]}" -o "$output/$tag-compressed"
  measure "$tag-drop" "$where" "$dtype" depth drop "$model" --layers "$to_go" "${few[@]}" -o "$output/$tag-dropped"
  measure "$tag-merge" "$where" "$dtype" depth merge "$model" --threshold 0.8 --calib "$text" --force -o "$output/$tag-merged"
  measure "$tag-streamline" "$where" "$dtype" depth streamline "$model" --layers "$to_go" --replace linear "${few[@]}" \
    -o "$output/$tag-streamlined"
  measure "$tag-heal" "$where" "$dtype" heal "$output/$tag-dropped" --text "$text" --samples 32 --seqlen 256 --updates 3 \
    --force -o "$output/$tag-healed"
  measure "$tag-quantize" "$where" "$dtype" quantize "$model" --bits 4 "${calibration[@]}" -o "$output/$tag-quantized"
  measure "$tag-rtn" "$where" "$dtype" quantize "$model" --bits 4 --method rtn --force -o "$output/$tag-rounded"
  evaluate "$tag-eval-dense" "$where" "$dtype" "$model"
  evaluate "$tag-eval-sliced" "$where" "$dtype" "$output/$tag-sliced"
  evaluate "$tag-eval-compressed" "$where" "$dtype" "$output/$tag-compressed"
  evaluate "$tag-eval-dropped" "$where" "$dtype" "$output/$tag-dropped"
  evaluate "$tag-eval-merged" "$where" "$dtype" "$output/$tag-merged"
  evaluate "$tag-eval-streamlined" "$where" "$dtype" "$output/$tag-streamlined"
  evaluate "$tag-eval-healed" "$where" "$dtype" "$output/$tag-healed"
  evaluate "$tag-eval-quantized" "$where" "$dtype" "$output/$tag-quantized"
  evaluate "$tag-eval-rounded" "$where" "$dtype" "$output/$tag-rounded"
  measure "$tag-bench" "$where" "$dtype" bench "$output/$tag-sliced" --against "$model" --repeats 3
}

# expect_failure CODE WORD COMMAND...: one line on stderr that holds the word, and the exit code.
expect_failure() {
  local code=$1 word=$2 status=0 lines
  shift 2
  lines=$("$@" 2>&1 >/dev/null) || status=$?
  if [[ $status -eq $code && $lines == *"$word"* ]]; then
    return
  fi
  say "error: exit code $status and '$lines', not $code and a line with '$word': $*"
  return 1
}

check_failures() {
  local score=(score "$model" --calib "$text" --samples 2 --seqlen 64 --quiet) status=0
  say "errors: a device that is not there, a device without memory"
  expect_failure 2 "--device cuda:99" "$dynslice" "${score[@]}" --device cuda:99 || status=1
  expect_failure 5 "memory" "$dynslice" "${score[@]}" --device "$device" --max-memory 1MB || status=1
  # A hundred-thousandth of the device's memory, of which the plan knows nothing.
  expect_failure 5 "out of memory" env PYTORCH_ALLOC_CONF=per_process_memory_fraction:0.00001 \
    PYTORCH_CUDA_ALLOC_CONF=per_process_memory_fraction:0.00001 "$dynslice" "${score[@]}" --device "$device" || status=1
  return "$status"
}

print_table() {
  python3 - "$output" "$device" <<'PYTHON'
import json, pathlib, sys

folder, device = pathlib.Path(sys.argv[1]), sys.argv[2]
read = lambda name: json.loads((folder / f"{name}.json").read_text())
seconds = lambda name: float((folder / f"{name}.seconds").read_text())
perplexity = lambda tag, name: next(iter(read(f"{tag}-eval-{name}")["perplexity"].values()))["value"]
faults = []


def fault(text):
    faults.append(text)
    return "DIFFERS"


def print_rows(rows):
    widths = [max(map(len, column)) for column in zip(*rows)]
    for number, cells in enumerate(rows):
        print("  ".join(cell.ljust(w) if column == 0 else cell.rjust(w) for column, (cell, w) in enumerate(zip(cells, widths))))
        if number == 0:
            print("  ".join("-" * width for width in widths))
    print()


rows = [["", f"{device}, fp32", "cpu, fp32", "difference", f"{device}, bf16"]]
for name in ("dense", "sliced", "compressed", "dropped", "merged", "streamlined", "healed", "quantized", "rounded"):
    ours, cpu, low = (perplexity(tag, name) for tag in ("device", "cpu", "bf16"))
    difference = ours / cpu - 1
    # Eigenvectors of close eigenvalues mix, and GPTQ hands the rounding of one weight on to the next: what differs in
    # the last bit ends in other weights, the more so the less text they are fitted to.
    if not abs(difference) <= {"sliced": 0.005, "compressed": 0.01, "quantized": 0.03}.get(name, 0.002):
        fault(f"perplexity of the {name} model: {ours:.4f} and {cpu:.4f}")
    rows.append([f"perplexity, {name}", f"{ours:.4f}", f"{cpu:.4f}", f"{100 * difference:+.4f} %", f"{low:.4f}"])

for name, limit in (("score", 1e-4), ("cka", 1e-3)):
    ours, cpu, low = (read(f"{tag}-{name}")["values"] for tag in ("device", "cpu", "bf16"))
    worst = lambda values: max(abs(a - b) for a, b in zip(values, cpu))
    if not worst(ours) <= limit:
        fault(f"{name}: values differ by {worst(ours):.2e}")
    rows.append([f"{name}, of layer 1", f"{ours[1]:.6f}", f"{cpu[1]:.6f}", f"at most {worst(ours):.1e}", f"{low[1]:.6f}"])

chosen = (("plan of the slice", lambda tag: read(f"{tag}-slice")["plan"]["dims"]),
          ("layers dropped", lambda tag: read(f"{tag}-drop")["removed"]),
          ("layers merged", lambda tag: read(f"{tag}-merge")["merged"]),
          ("layers streamlined", lambda tag: read(f"{tag}-streamline")["removed"]))
for name, choice in chosen:
    same = choice("device") == choice("cpu")
    rows.append([name, "", "", "none" if same else fault(f"{name}: {choice('device')} and {choice('cpu')}"),
                 "the same" if choice("bf16") == choice("cpu") else "others"])
print()
print_rows(rows)

rows = [["seconds, process", f"{device}, fp32", "cpu, fp32", "times faster", f"{device}, bf16", "device memory, fp32"]]
for name in ("score", "cka", "slice", "modular", "drop", "merge", "streamline", "heal", "quantize", "rtn", "eval-dense", "eval-sliced"):
    ours, cpu, low = (seconds(f"{tag}-{name}") for tag in ("device", "cpu", "bf16"))
    peak = read(f"device-{name}").get("peak_device_bytes")
    rows.append([name, f"{ours:.1f}", f"{cpu:.1f}", f"{cpu / ours:.1f}", f"{low:.1f}", f"{peak / 1e9:.2f} GB" if peak else "-"])
print_rows(rows)

rows = [["tokens/s", f"{device}, fp32", "cpu, fp32", "times faster", f"{device}, bf16"]]
speeds = [(f"eval, {name}", lambda tag, name=name: read(f"{tag}-eval-{name}")["tokens_per_second"]) for name in ("dense", "sliced")]
for phase in ("prefill", "decode"):
    speeds += [(f"{phase}, dense", lambda tag, phase=phase: read(f"{tag}-bench")["against"][phase]["tokens_per_second"]),
               (f"{phase}, sliced", lambda tag, phase=phase: read(f"{tag}-bench")[phase]["tokens_per_second"])]
for name, speed in speeds:
    ours, cpu, low = map(speed, ("device", "cpu", "bf16"))
    rows.append([name, f"{ours:,.0f}", f"{cpu:,.0f}", f"{ours / cpu:.1f}", f"{low:,.0f}"])
print_rows(rows)

for text in faults:
    print(f"gpu_check: error: {text}", file=sys.stderr)
sys.exit(1 if faults else 0)
PYTHON
}

describe_machine() {
  local card
  card=$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null | head -n 1 || true)
  say "device: ${card:-unknown (no nvidia-smi)}; $(nproc) CPU core(s)"
}

main() {
  parse_options "$@"
  if [[ $with_build == yes ]]; then
    build
  fi
  dynslice=$build_dir/bin/dynslice
  [[ -x $dynslice ]] || die 4 "$dynslice is not there; run tools/gpu_check.sh without --no-build"
  mkdir -p "$output"
  rm -rf "$output"/{device,bf16,cpu}-*
  describe_machine
  run_tests || die 1 "unit tests on $device failed, or were skipped"
  [[ $with_model == yes ]] || return 0
  # The first process on a device reads gigabytes of libraries from the disk.
  "$dynslice" score "$model" --calib "$text" --samples 1 --seqlen 16 --device "$device" --quiet >/dev/null
  run_verbs device "$device" fp32
  run_verbs bf16 "$device" bf16
  run_verbs cpu cpu fp32
  local status=0
  print_table || status=1
  check_failures || status=1
  [[ $status -eq 0 ]] || die 1 "device and CPU do not agree; results are in $output"
  say "perplexities, plans and layers agree; results are in $output"
}

# On one line: bash reads a script as it goes, and this one may be replaced while it runs.
main "$@"; exit
