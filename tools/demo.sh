#!/usr/bin/env bash
# shellcheck disable=SC2317 # the exit after main makes it doubt every function that is only passed on
# From a fresh machine to a table: a small model made smaller in three ways, at equal parameters, and evaluated.
set -euo pipefail
# shellcheck source=tools/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
  cat <<USAGE
usage: tools/demo.sh [--quick | --full] [--target SHARE] [--output DIR] [--build-dir DIR] [--no-setup] [--no-apt] [--help]

Installs what is missing, builds, gets SmolLM2-135M, and removes SHARE of its parameters in three ways:
  constant   dynslice slice --allocate constant   the same width from every layer (SliceGPT)
  dynamic    dynslice slice --allocate lr         more from redundant layers (DynamicSlicing)
  best       dynslice slice --preset best         neurons and heads instead of width: loses least
Evaluates the dense model and all three, and prints a table.

  --quick          8 windows of 512 tokens to calibrate on (default: 11); both evaluate on 8
  --full           figures to compare: 32 windows of 1024 tokens to calibrate ('best': 128, as the preset has
                   it), the whole test split to evaluate (about an hour)
  --target SHARE   how many of the parameters to remove (default: 25%)
  --output DIR     where results go (default: demo-out/); what an earlier run left there is replaced
  --build-dir DIR  where to build (default: build/)
  --no-setup       use what is in the build folder
  --no-apt         install no Debian packages

Text: wikitext-2 from DYNSLICE_DATA_DIR, else from dynslice's cache or the hub, else prose of the Debian
Administrator's Handbook. DYNSLICE_MODEL names another model.
USAGE
}

samples=11
seqlen=512
gradient_samples=4
eval_samples=(--samples 8)
target=25%
output=$repo_root/demo-out
build_dir=$repo_root/build
full=no
with_setup=yes
setup_options=()

parse_options() {
  while [[ $# -gt 0 ]]; do
    case $1 in
      --quick) samples=8 && gradient_samples=2 ;;
      --full) samples=32 && seqlen=1024 && eval_samples=() && full=yes ;;
      --target) needs_value "$1" "$@" && target=$2 && shift ;;
      --output) needs_value "$1" "$@" && output=$2 && shift ;;
      --build-dir) needs_value "$1" "$@" && build_dir=$2 && shift ;;
      --no-setup) with_setup=no ;;
      --no-apt) setup_options+=(--no-apt) ;;
      -h | --help) usage && exit 0 ;;
      *) die 2 "unknown option '$1'; see --help" ;;
    esac
    shift
  done
}

choose_model() {
  if [[ -n ${DYNSLICE_MODEL:-} ]]; then
    model=$DYNSLICE_MODEL
  elif ! model=$("$repo_root/tools/fetch_model.sh"); then
    model=$model_hub_id
    say "dynslice gets the model from the hub instead"
  fi
  say "model: $model"
  "$dynslice" inspect "$model"
}

# ---- Text ------------------------------------------------------------------------------------------------------

wikitext_in_data_dir() {
  local folder=${DYNSLICE_DATA_DIR:-}/wikitext-2-raw
  [[ -n ${DYNSLICE_DATA_DIR:-} && -f $folder/wiki.test.raw ]] &&
    [[ -f $folder/wiki.train.raw || -f $folder/wiki.valid.raw ]]
}

# Asks the program itself, which knows its cache and the hub: one short window of each text.
wikitext_by_program() {
  local status=0
  say "no wikitext-2 in DYNSLICE_DATA_DIR; looking in the cache and on the hub"
  { "$dynslice" eval "$model" --ppl wikitext2 --samples 1 --seqlen 16 --force &&
    "$dynslice" score "$model" --calib wikitext2 --samples 1 --seqlen 16 --force -o "$output/probe.json"; } \
    >"$output/probe.log" 2>&1 || status=$?
  rm -f "$output/probe.json"
  # 4: the data is not there. Anything else is a fault that other text would only hide.
  [[ $status -eq 0 || $status -eq 4 ]] || { tail -n 3 "$output/probe.log" >&2 && die "$status" "dynslice could not read wikitext-2"; }
  return "$status"
}

fetch_documentation() {
  (cd "$1" && { apt-get download "$2" || { as_root apt-get update -q && apt-get download "$2"; }; } &&
    dpkg-deb -x "$2"_*.deb unpacked)
}

html_folder() {
  find "$1" -name index.html -path '*/html/en*' -printf '%h\n' | sort | head -n 1
}

# Prose for a machine that has Debian's packages and nothing else.
documentation_text() {
  local folder work html
  folder=$(cache_dir)/demo-text
  if [[ ! -f $folder/evaluation.txt ]]; then
    command -v apt-get >/dev/null 2>&1 || die 4 "no text to work on: put wikitext-2-raw/ into a folder and set DYNSLICE_DATA_DIR to it"
    mkdir -p "$(cache_dir)"
    work=$(mktemp -d "$(cache_dir)/.demo.XXXXXX")
    # shellcheck disable=SC2064 # the folder of now
    trap "rm -rf '$work'" EXIT
    say "fetching the Debian package debian-handbook (35 MB) for its text"
    quietly demo-text fetch_documentation "$work" debian-handbook ||
      die 4 "debian-handbook could not be fetched; put wikitext-2-raw/ into a folder and set DYNSLICE_DATA_DIR to it"
    html=$(html_folder "$work/unpacked")
    [[ -n $html ]] || die 3 "debian-handbook has no English HTML"
    python3 "$repo_root/tools/demo_text.py" "$html" "$work/text"
    rm -rf "$folder"
    mv "$work/text" "$folder"
  fi
  calibration_text=$folder/calibration.txt
  evaluation_text=$folder/evaluation.txt
}

choose_text() {
  calibration_text=wikitext2
  evaluation_text=wikitext2
  if wikitext_in_data_dir || wikitext_by_program; then
    say "text: wikitext-2"
    return
  fi
  documentation_text
  say "text: NO WIKITEXT-2 HERE; using prose of the Debian Administrator's Handbook: its first half to calibrate on,"
  say "text: its second half to evaluate on. Perplexities below are not comparable with published ones."
}

# ---- Work ------------------------------------------------------------------------------------------------------

slice() { # NAME OPTION...
  local name=$1
  shift
  say "removing $target of the parameters, '$name' -> $output/$name"
  "$dynslice" slice "$model" --target "params=$target" "$@" --calib "$calibration_text" --seqlen "$seqlen" \
    -o "$output/$name" --force --json >"$output/slice-$name.json"
}

# --force here and in the other steps: a demo that was stopped starts over.
evaluate() { # NAME MODEL
  say "evaluating '$1'"
  "$dynslice" eval "$2" --ppl "$evaluation_text" "${eval_samples[@]}" --seqlen "$seqlen" --force --json \
    >"$output/eval-$1.json"
}

# The quick form of --preset best calibrates on the demo's text instead of 128 windows.
compress() {
  local best_text=(--samples "$samples" --gradient-samples "$gradient_samples")
  [[ $full == no ]] || best_text=()
  slice constant --allocate constant --samples "$samples"
  slice dynamic --allocate lr --scores "$output/scores.json" --samples "$samples"
  slice best --preset best --scores "$output/scores.json" "${best_text[@]}"
}

print_summary() {
  python3 - "$output" <<'PYTHON'
import json, pathlib, sys

folder = pathlib.Path(sys.argv[1])
read = lambda name: json.loads((folder / name).read_text())
sizes = {name: read(f"slice-{name}.json") for name in ("constant", "dynamic", "best")}


def row(name, parameters, size):
    result = read(f"eval-{name}.json")
    perplexity = next(iter(result["perplexity"].values()))
    removed = 1 - parameters / before["parameters"]["before"]
    return [name, f"{parameters:,}", f"-{100 * removed:.1f}%" if removed else "", f"{size / 1e6:,.1f} MB",
            f"{perplexity['value']:.2f} ± {perplexity['stderr']:.2f}", f"{result['tokens_per_second']:,.0f}"]


before = sizes["constant"]
size_before = before["bytes"].get("before_at_output_dtype", before["bytes"]["before"])
rows = [["model", "parameters", "removed", "bytes", "perplexity", "tokens/s"],
        row("dense", before["parameters"]["before"], size_before)]
rows += [row(name, size["parameters"]["after"], size["bytes"]["after"]) for name, size in sizes.items()]
widths = [max(map(len, column)) for column in zip(*rows)]
print()
for number, cells in enumerate(rows):
    print("  ".join(cell.ljust(w) if column == 0 else cell.rjust(w) for column, (cell, w) in enumerate(zip(cells, widths))))
    if number == 0:
        print("  ".join("-" * width for width in widths))

measured = next(iter(read("eval-dense.json")["perplexity"].items()))
print(f"\nPerplexity (lower is better) on {measured[0]}: {measured[1]['windows']} windows of {measured[1]['seqlen']} tokens.")
print("constant: SliceGPT. dynamic: DynamicSlicing. best: `dynslice slice --preset best`. Nothing was fine-tuned.")
if size_before != before["bytes"]["before"]:
    print(f"Bytes: all in the number format of the sliced checkpoints; the dense file holds {before['bytes']['before'] / 1e6:,.1f} MB of quantized weights.")
PYTHON
}

print_next() {
  cat <<NEXT

Next:
  # What the best of them still writes:
  $dynslice generate $output/best --prompt "The city of" --max-tokens 40
  # Some minutes of training win much of the loss back:
  $dynslice heal $output/best --text $calibration_text --updates 24 --learning-rate 4e-3 -o $output/healed
  # The same with your model, and the preset's own amount of text:
  $dynslice slice YOUR_MODEL --preset best --target params=$target -o OUT
README.md says which command serves which wish.
NEXT
}

main() {
  parse_options "$@"
  if [[ $with_setup == yes ]]; then
    "$repo_root/tools/setup.sh" --no-model --build-dir "$build_dir" "${setup_options[@]}"
  fi
  dynslice=$build_dir/bin/dynslice
  [[ -x $dynslice ]] || die 4 "$dynslice is not there; run tools/setup.sh"
  mkdir -p "$output"
  choose_model
  choose_text
  SECONDS=0

  say "scoring the layers of the dense model ($samples windows of $seqlen tokens)"
  "$dynslice" score "$model" --metric lr --calib "$calibration_text" --samples "$samples" --seqlen "$seqlen" \
    --force -o "$output/scores.json"
  compress
  evaluate dense "$model"
  evaluate constant "$output/constant"
  evaluate dynamic "$output/dynamic"
  evaluate best "$output/best"
  print_summary
  print_next
  say "scoring, slicing and evaluating took $((SECONDS / 60)) min $((SECONDS % 60)) s"
}

# On one line: bash reads a script as it goes, and this one may be replaced while it runs.
main "$@"; exit
