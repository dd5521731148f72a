#!/usr/bin/env bash
# shellcheck disable=SC2317 # the exit after main makes it doubt every function that is only passed on
# Checks the form of the code: clang-format on all of it, clang-tidy on what changed.
set -euo pipefail
# shellcheck source=tools/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
  cat <<USAGE
usage: tools/lint.sh [--fix] [--format-only] [--since REV | --all] [--most N] [--build-dir DIR] [--jobs N] [--help]

Checks with clang-format $clang_version that every C++ file is formatted as .clang-format says, and with clang-tidy
$clang_version the source files that differ from REV, committed or not. Exit code 1: something is to be mended.

  --fix            format the files instead
  --format-only    no clang-tidy
  --since REV      what clang-tidy looks at: files changed since this commit (default: HEAD~1)
  --all            clang-tidy looks at all source files (about a quarter of an hour)
  --most N         clang-tidy looks at N units (what is compiled together) at the most, those with most changed lines,
                   and says how many it left out
  --build-dir DIR  a configured build, for the place of LibTorch (default: build/)
  --jobs N         clang-tidy processes at a time (default: one a core, fewer when memory is short)

Both programs are Debian's packages clang-format-$clang_version and clang-tidy-$clang_version; tools/setup.sh --tests installs them.
USAGE
}

fix=no
tidy=yes
since=HEAD~1
most=
build_dir=$repo_root/build
jobs=$(default_jobs)

parse_options() {
  while [[ $# -gt 0 ]]; do
    case $1 in
      --fix) fix=yes ;;
      --format-only) tidy=no ;;
      --since) needs_value "$1" "$@" && since=$2 && shift ;;
      --all) since= ;;
      --most) needs_value "$1" "$@" && most=$2 && shift ;;
      --build-dir) needs_value "$1" "$@" && build_dir=$(realpath -m "$2") && shift ;;
      --jobs) needs_value "$1" "$@" && jobs=$2 && shift ;;
      -h | --help) usage && exit 0 ;;
      *) die 2 "unknown option '$1'; see --help" ;;
    esac
    shift
  done
  [[ $most =~ ^([1-9][0-9]*)?$ ]] || die 2 "--most is '$most'; it must be a whole number above 0"
}

check_format() {
  local files
  mapfile -t files < <(git ls-files '*.cpp' '*.h')
  if [[ $fix == yes ]]; then
    "clang-format-$clang_version" -i "${files[@]}"
    say "formatted ${#files[@]} files"
  elif "clang-format-$clang_version" --dry-run --Werror "${files[@]}"; then
    say "clang-format: ${#files[@]} files are as .clang-format says"
  else
    say "error: files are not formatted; run tools/lint.sh --fix"
    return 1
  fi
}

changed_sources() {
  if [[ -z $since ]]; then
    git ls-files 'src/*.cpp' 'tests/unit/*.cpp'
  else
    git diff --numstat --diff-filter=d "$since" -- 'src/*.cpp' 'tests/unit/*.cpp' | sort -k1,1nr | cut -f3
  fi
}

# The unit that compiles each of the sources, once. Those of a room are compiled together, and clang-tidy reads them so
# too: nearly all of its time goes into LibTorch's headers.
units_of() {
  local source unit
  for source in "$@"; do
    unit=$(grep -rlF --include='*.cxx' "\"$repo_root/$source\"" "$build_dir/lint") || unit=$source
    printf '%s\n' "$unit"
  done | awk '!seen[$0]++'
}

check_tidy() {
  local sources units libtorch
  mapfile -t sources < <(changed_sources)
  if [[ ${#sources[@]} -eq 0 ]]; then
    say "clang-tidy: no source file changed since $since"
    return
  fi
  libtorch=$(sed -n 's/^LibTorch_INCLUDE_DIR:[A-Z]*=//p' "$build_dir/CMakeCache.txt" 2>/dev/null) ||
    die 4 "$build_dir is not configured; run tools/setup.sh --tests"
  quietly lint cmake -S . -B "$build_dir/lint" -G Ninja -DDYNSLICE_PRECOMPILED_HEADERS=OFF -DDYNSLICE_TESTS=ON \
    "-DLIBTORCH_ROOT=${libtorch%/include}" || die 3 "CMake could not configure $build_dir/lint"
  mapfile -t units < <(units_of "${sources[@]}")
  if [[ -n $most && ${#units[@]} -gt $most ]]; then
    say "clang-tidy: $((${#units[@]} - most)) units with changes are left out (--most $most)"
    units=("${units[@]:0:$most}")
  fi
  say "clang-tidy: ${#sources[@]} changed files, ${#units[@]} units"
  # Debian's clang has no omp.h of its own, and does not understand GCC's.
  printf '%s\0' "${units[@]}" | xargs -0 -n 1 -P "$jobs" "clang-tidy-$clang_version" -p "$build_dir/lint" --quiet \
    --warnings-as-errors='*' --extra-arg=-fno-openmp --extra-arg=-Wno-unknown-pragmas \
    --extra-arg=-Wno-unknown-warning-option ||
    { say "error: clang-tidy found something" && return 1; }
}

main() {
  parse_options "$@"
  cd "$repo_root"
  local program status=0
  for program in "clang-format-$clang_version" "clang-tidy-$clang_version"; do
    command -v "$program" >/dev/null 2>&1 || die 4 "no $program; tools/setup.sh --tests installs it"
  done
  check_format || status=1
  if [[ $tidy == yes && $fix == no ]]; then
    check_tidy || status=1
  fi
  return "$status"
}

# On one line: bash reads a script as it goes, and this one may be replaced while it runs.
main "$@"; exit
