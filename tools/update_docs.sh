#!/usr/bin/env bash
# shellcheck disable=SC2317 # the exit after main makes it doubt every function that is only passed on
# Writes the pages of docs/ anew that the program makes: options.md and models.md.
set -euo pipefail
# shellcheck source=tools/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
  cat <<USAGE
usage: tools/update_docs.sh [--check] [--no-build] [--folder DIR] [--build-dir DIR] [--help]

  --check          build and write nothing; the exit code is 1 when a page is stale
  --no-build       take the program as it is
  --folder DIR     where the pages are (default: docs/)
  --build-dir DIR  where the program is built (default: build/)

Needed after a verb, an option or a help text in src/cli/, or the table of models, has changed, and after merging such
changes.
USAGE
}

check=no
with_build=yes
folder=$repo_root/docs
build_dir=$repo_root/build

parse_options() {
  while [[ $# -gt 0 ]]; do
    case $1 in
      --check) check=yes && with_build=no ;;
      --no-build) with_build=no ;;
      --folder) needs_value "$1" "$@" && folder=$2 && shift ;;
      --build-dir) needs_value "$1" "$@" && build_dir=$2 && shift ;;
      -h | --help) usage && exit 0 ;;
      *) die 2 "unknown option '$1'; see --help" ;;
    esac
    shift
  done
}

stale=0

update_page() { # NAME VERB...
  local page=$folder/$1 text
  shift
  text=$("$program" "$@") || die 3 "$program could not print $page"
  if [[ -f $page ]] && cmp -s <(printf '%s\n' "$text") "$page"; then
    say "$page is current"
  elif [[ $check == yes ]]; then
    warn "$page is stale; run tools/update_docs.sh and commit what it wrote"
    stale=1
  else
    printf '%s\n' "$text" >"$page"
    say "wrote $page"
  fi
}

main() {
  parse_options "$@"
  local program=$build_dir/bin/dynslice
  if [[ $with_build == yes ]]; then
    [[ -f $build_dir/build.ninja ]] || die 4 "$build_dir is no build folder; run tools/setup.sh"
    quietly update-docs ninja -C "$build_dir" dynslice_program || die 3 "the program could not be built"
  fi
  [[ -x $program ]] || die 4 "$program is not there; run tools/setup.sh"
  update_page options.md reference markdown
  update_page models.md models --markdown
  return "$stale"
}

# On one line: bash reads a script as it goes, and this one may be replaced while it runs.
main "$@"; exit
