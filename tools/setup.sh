#!/usr/bin/env bash
# shellcheck disable=SC2317 # the exit after main makes it doubt every function that is only passed on
# Installs what is missing, then configures and builds dynslice.
set -euo pipefail
# shellcheck source=tools/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
  cat <<USAGE
usage: tools/setup.sh [--tests] [--no-apt] [--no-model] [--build-dir DIR] [--jobs N] [--help]

  --tests          also the tests and what they run: a Python environment (transformers, an older transformers, lm-eval,
                   gguf, ...), llama.cpp's llama-perplexity and llama-quantize, and the Debian packages zsh, fish,
                   groff-base, clang-format and clang-tidy
  --no-apt         install no Debian packages (say which are missing, and go on)
  --no-model       do not fetch the small default model
  --build-dir DIR  where to build (default: build/)
  --jobs N         compilers at a time (default: one a core, fewer when memory is short)

Every step is skipped when what it makes is there. LibTorch is taken from LIBTORCH_ROOT, CMAKE_PREFIX_PATH, an
importable torch >= $torch_minimum, or the cache folder, and installed there with pip otherwise.
Cache folder: DYNSLICE_CACHE, else \$XDG_CACHE_HOME/dynslice, else ~/.cache/dynslice.
USAGE
}

with_tests=no
with_apt=yes
with_model=yes
build_dir=$repo_root/build
jobs=$(default_jobs)

parse_options() {
  while [[ $# -gt 0 ]]; do
    case $1 in
      --tests) with_tests=yes ;;
      --no-apt) with_apt=no ;;
      --no-model) with_model=no ;;
      --build-dir) needs_value "$1" "$@" && build_dir=$2 && shift ;;
      --jobs) needs_value "$1" "$@" && jobs=$2 && shift ;;
      -h | --help) usage && exit 0 ;;
      *) die 2 "unknown option '$1'; see --help" ;;
    esac
    shift
  done
  [[ $jobs =~ ^[1-9][0-9]*$ ]] || die 2 "--jobs is '$jobs'; it must be a whole number above 0"
}

# ---- Debian packages -------------------------------------------------------------------------------------------

readonly apt_packages=(g++ cmake ninja-build ccache pkg-config libsentencepiece-dev nlohmann-json3-dev libcli11-dev
  libspdlog-dev libfmt-dev libgtest-dev libgmock-dev libpcre2-dev libutf8proc-dev libcurl4-openssl-dev libssl-dev
  libxxhash-dev libzip-dev zlib1g-dev ca-certificates)
# Completion in these shells, the man page, and tools/lint.sh.
readonly test_packages=(zsh fish groff-base "clang-format-$clang_version" "clang-tidy-$clang_version")

python_works() {
  python3 -m pip --version >/dev/null 2>&1 && python3 -c 'import venv, ensurepip' >/dev/null 2>&1
}

missing_packages() {
  local package
  local packages=("${apt_packages[@]}")
  [[ $with_tests == no ]] || packages+=("${test_packages[@]}")
  for package in "${packages[@]}"; do
    [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || printf '%s\n' "$package"
  done
  # A Python from elsewhere (pyenv, conda) serves as well as Debian's.
  python_works || printf '%s\n' python3 python3-pip python3-venv
}

# An update that fails in part (one broken source) is no reason to stop: the install tells.
apt_install() {
  as_root apt-get update -q
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@"
}

install_packages() {
  if ! command -v dpkg-query >/dev/null 2>&1; then
    warn "not Debian or Ubuntu: install these yourself, under your system's names: ${apt_packages[*]}"
    return
  fi
  local missing
  mapfile -t missing < <(missing_packages)
  if [[ ${#missing[@]} -eq 0 ]]; then
    say "Debian packages: all there"
    return
  fi
  if [[ $with_apt == no ]]; then
    warn "missing Debian packages (--no-apt): ${missing[*]}"
    return
  fi
  [[ $(id -u) -eq 0 ]] || command -v sudo >/dev/null 2>&1 ||
    die 4 "not root and no sudo; as root: apt-get install ${missing[*]}"
  say "Debian packages: installing ${missing[*]}"
  # Asked here, where the question can be seen: the output of apt goes to a log.
  [[ $(id -u) -eq 0 ]] || sudo -v || die 4 "sudo refused; as root: apt-get install ${missing[*]}"
  quietly apt apt_install "${missing[@]}" ||
    die 4 "apt-get failed (no network?); still missing: $(missing_packages | tr '\n' ' ')"
}

check_tools() {
  local version
  command -v cmake >/dev/null 2>&1 || die 4 "no cmake; install CMake 3.25 or newer"
  version=$(cmake --version | sed -n '1s/[^0-9]*\([0-9]*\.[0-9]*\).*/\1/p')
  at_least "$version" 3.25 || die 4 "CMake $version is too old; 3.25 or newer is needed (Debian 12, Ubuntu 24.04)"
  command -v ninja >/dev/null 2>&1 || die 4 "no ninja; install ninja-build"
  command -v g++ >/dev/null 2>&1 || die 4 "no g++; install GCC 12 or newer"
  version=$(g++ -dumpversion)
  at_least "$version" 12 || die 4 "g++ $version is too old; 12 or newer is needed (Debian 12, Ubuntu 24.04)"
}

at_least() { [[ $(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1) == "$2" ]]; }

# ---- LibTorch --------------------------------------------------------------------------------------------------

libtorch_version_of() {
  local header
  for header in "$1/include/torch/headeronly/version.h" "$1/include/torch/csrc/api/include/torch/version.h"; do
    [[ -f $header ]] || continue
    awk '$2 ~ /^TORCH_VERSION_(MAJOR|MINOR|PATCH)$/ { version = version dot $3; dot = "." } END { print version }' "$header"
    return
  done
}

# Whether the folder is a LibTorch that dynslice can be built with; says why when it is one that cannot.
usable_libtorch() {
  [[ -f $1/include/ATen/ATen.h && -f $1/lib/libtorch_cpu.so ]] || return 1
  local version
  version=$(libtorch_version_of "$1")
  if ! at_least "${version:-0}" "$torch_minimum"; then
    say "LibTorch ${version:-of unknown version} in $1 is older than $torch_minimum: not used"
    return 1
  fi
  if grep -qs 'GLIBCXX_USE_CXX11_ABI=0' "$1/share/cmake/Torch/TorchConfig.cmake"; then
    say "LibTorch $version in $1 is built with the old C++ ABI: not used"
    return 1
  fi
}

importable_torch() {
  command -v python3 >/dev/null 2>&1 || return 0
  python3 -c 'import importlib.util as u
spec = u.find_spec("torch")
print(spec.submodule_search_locations[0] if spec and spec.submodule_search_locations else "")' 2>/dev/null || true
}

libtorch_candidates() {
  local prefix prefixes
  [[ -n ${LIBTORCH_ROOT:-} ]] && printf '%s\n' "$LIBTORCH_ROOT"
  IFS=':;' read -ra prefixes <<<"${CMAKE_PREFIX_PATH:-}"
  for prefix in "${prefixes[@]}"; do
    # find_package(Torch) users point at share/cmake or at the folder above it.
    printf '%s\n' "$prefix" "$prefix/torch" "$prefix/libtorch" "${prefix%/share/cmake}"
  done
  importable_torch
  printf '%s\n' "$cache/libtorch-$torch_version/torch"
}

find_libtorch() {
  local candidate
  while IFS= read -r candidate; do
    if [[ -n $candidate ]] && usable_libtorch "$candidate"; then
      printf '%s\n' "$candidate"
      return
    fi
  done < <(libtorch_candidates)
}

pip_torch() { python3 -m pip install --no-compile --target "$work/libtorch" "$@"; }

# The CPU build: pip's own index may have one (a mirror does), PyTorch's index of CPU builds has; PyPI's build needs CUDA.
install_cpu_torch() {
  local elsewhere
  for elsewhere in "" "--index-url $torch_cpu_index --retries 1 --timeout 20"; do
    rm -rf "$work/libtorch"
    # shellcheck disable=SC2086 # words
    quietly torch-cpu pip_torch --no-deps $elsewhere "torch==$torch_version+cpu" 2>/dev/null && return
  done
  return 1
}

install_libtorch() {
  python3 -m pip --version >/dev/null 2>&1 || die 4 "no pip to install LibTorch with; set LIBTORCH_ROOT to a LibTorch"
  say "LibTorch: installing torch $torch_version with pip into $cache/libtorch-$torch_version"
  if has_nvidia_driver || ! install_cpu_torch; then
    rm -rf "$work/libtorch"
    quietly torch pip_torch --no-deps "torch==$torch_version" ||
      die 4 "torch $torch_version could not be installed with pip (no network?); set LIBTORCH_ROOT to a LibTorch >= $torch_minimum"
    if [[ -e $work/libtorch/torch/lib/libtorch_cuda.so ]]; then
      say "LibTorch: that is the CUDA build; installing its CUDA libraries too (several GB)"
      rm -rf "$work/libtorch"
      quietly torch-cuda pip_torch "torch==$torch_version" || die 4 "the CUDA libraries of torch $torch_version could not be installed"
    fi
  fi
  rm -rf "$cache/libtorch-$torch_version"
  mv "$work/libtorch" "$cache/libtorch-$torch_version"
}

provide_libtorch() {
  libtorch=$(find_libtorch)
  if [[ -z $libtorch ]]; then
    install_libtorch
    libtorch=$(find_libtorch)
    [[ -n $libtorch ]] || die 3 "the torch that pip installed into $cache/libtorch-$torch_version is no usable LibTorch"
  fi
  say "LibTorch: $(libtorch_version_of "$libtorch") in $libtorch"
}

# ---- What the tests compare with -------------------------------------------------------------------------------

fill_venv() {
  local site
  python3 -m venv --system-site-packages "$1" &&
    site=$("$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))') || return 1
  # One LibTorch serves the build and the tests: pip sees it as installed and adds only what it depends on.
  if [[ $libtorch == "$cache/libtorch-$torch_version/torch" ]]; then
    dirname "$libtorch" >"$site/libtorch.pth"
  fi
  "$1/bin/python" -m pip install -r "$repo_root/tests/requirements.txt" &&
    # `pip install .` is tested without network: what builds it comes from here.
    "$1/bin/python" -m pip download -q --dest "$1/wheelhouse" "$(grep '^scikit-build-core==' "$repo_root/tests/requirements.txt")"
}

provide_venv() {
  local venv
  venv=$(venv_dir)
  if [[ -f $venv/.complete ]]; then
    say "Python environment of the tests: $venv"
    return
  fi
  say "Python environment of the tests: installing tests/requirements.txt into $venv"
  rm -rf "$venv"
  quietly venv fill_venv "$venv" || die 4 "tests/requirements.txt could not be installed (no network?)"
  touch "$venv/.complete"
}

provide_old_transformers() {
  local folder
  folder=$(old_transformers_dir)
  if [[ -d $folder ]]; then
    say "older transformers of the tests: $folder"
    return
  fi
  say "older transformers of the tests: installing tests/requirements-old.txt into $folder"
  quietly transformers-old "$(venv_dir)/bin/python" -m pip install --no-deps --target "$work/transformers-old" \
    -r "$repo_root/tests/requirements-old.txt" || die 4 "tests/requirements-old.txt could not be installed (no network?)"
  mv "$work/transformers-old" "$folder"
}

fetch_llama_source() {
  local archive
  python3 -m pip download --no-deps --no-binary llama-cpp-python --dest "$work" \
    "llama-cpp-python==$llama_package_version" || return 1
  archive=$(find "$work" -maxdepth 1 -name 'llama_cpp_python-*.tar.gz')
  mkdir -p "$1" "$work/llama" && tar -xzf "$archive" -C "$work/llama" --strip-components=1 &&
    rm -rf "$1/source" && mv "$work/llama" "$1/source"
}

# Two static programs; no servers, no user interface, nothing from the network. llama-perplexity is put in place
# last: it is what says that the build is whole.
build_llama() {
  [[ -d $1/source ]] || fetch_llama_source "$1" || return 1
  cmake -S "$1/source/vendor/llama.cpp" -B "$1/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF \
    -DGGML_NATIVE=ON -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TOOLS=ON -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
    -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF &&
    ninja -C "$1/build" -j "$jobs" llama-perplexity llama-quantize &&
    mkdir -p "$1/bin" &&
    cp "$1/build/bin/llama-quantize" "$1/bin/" &&
    cp "$1/build/bin/llama-perplexity" "$1/bin/.llama-perplexity" &&
    mv "$1/bin/.llama-perplexity" "$1/bin/llama-perplexity" &&
    rm -rf "$1/build" "$1/source"
}

provide_llama() {
  local folder
  folder=$(llama_dir)
  if [[ -x $folder/bin/llama-perplexity ]]; then
    say "llama.cpp: $folder/bin"
    return
  fi
  say "llama.cpp: building llama-perplexity and llama-quantize, once, in $folder (about 5 minutes)"
  quietly llama build_llama "$folder" ||
    die 4 "llama.cpp could not be fetched and built; without it the tests against it are skipped"
}

# ---- dynslice itself -------------------------------------------------------------------------------------------

build_dynslice() {
  local options=(-DCMAKE_BUILD_TYPE=Release "-DLIBTORCH_ROOT=$libtorch")
  if [[ $with_tests == yes ]]; then
    options+=(-DDYNSLICE_TESTS=ON "-DDYNSLICE_TEST_PYTHON=$(venv_dir)/bin/python")
  elif [[ ! -f $build_dir/CMakeCache.txt ]]; then
    options+=(-DDYNSLICE_TESTS=OFF)
  fi
  forget_other_libtorch
  say "configuring in $build_dir"
  quietly configure cmake -S "$repo_root" -B "$build_dir" -G Ninja "${options[@]}" || die 3 "CMake could not configure the build"
  say "building with $jobs compiler(s)"
  SECONDS=0
  if [[ -t 2 ]]; then
    ninja -C "$build_dir" -j "$jobs" >&2 || die 3 "the build failed"
  else
    show_build &
    local watcher=$! status=0
    NINJA_STATUS="[%f/%t] " quietly build ninja -C "$build_dir" -j "$jobs" || status=$?
    kill "$watcher" 2>/dev/null || true
    [[ $status -eq 0 ]] || die 3 "the build failed"
  fi
  say "built $build_dir/bin/dynslice in $((SECONDS / 60)) min $((SECONDS % 60)) s"
}

# A line every 20 seconds where there is no terminal that ninja could draw on.
show_build() {
  local log steps
  log=$(cache_dir)/log/build.log
  # A sleep that outlives its reader must not hold the terminal or a pipe; $$ is the script, also in here.
  while sleep 20 >/dev/null 2>&1 && kill -0 $$ 2>/dev/null; do
    steps=$(tail -n 1 "$log" 2>/dev/null | sed -n 's|^\[\([0-9]*\)/\([0-9]*\)\].*|\1 of \2 steps|p')
    [[ -z $steps ]] || say "building: $steps, $((SECONDS / 60)) min $((SECONDS % 60)) s"
  done
}

# CMake keeps what it found first: a build folder made with another LibTorch has to look again.
forget_other_libtorch() {
  local file=$build_dir/CMakeCache.txt
  [[ -f $file ]] || return 0
  if ! grep -q "^LibTorch_INCLUDE_DIR:[A-Z]*=$libtorch/include\$" "$file"; then
    sed -i '/^LibTorch_/d' "$file"
  fi
}

provide_model() { # NAME WHAT IF_NOT
  local path
  if path=$("$repo_root/tools/fetch_model.sh" "$1"); then
    say "$2: $path"
  else
    warn "the $2 is not here; $3"
  fi
}

# What a first run on two cores takes; a later one has most of it.
announce() {
  if [[ $with_tests == yes ]]; then
    say "a first setup with tests takes about 30 minutes on two cores and 3.8 GB of disk; what is there already is kept"
  else
    say "a first setup takes about 8 minutes on two cores and 1.7 GB of disk; what is there already is kept"
  fi
}

main() {
  parse_options "$@"
  announce
  cache=$(cache_dir)
  mkdir -p "$cache"
  install_packages
  check_tools

  # Two setups at once would build the same things into the same cache.
  exec 9>"$cache/.lock"
  flock -n 9 || { say "another setup is at work in $cache; waiting for it" && flock 9; }
  work=$(mktemp -d "$cache/.setup.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  provide_libtorch
  if [[ $with_tests == yes ]]; then
    provide_venv
    provide_old_transformers
    provide_llama
  fi
  exec 9>&-

  build_dynslice
  if [[ $with_model == yes ]]; then
    provide_model smollm2 "default model" "give dynslice a MODEL"
    [[ $with_tests == no ]] || provide_model gemma "second model of the tests" "they are skipped"
  fi
  if [[ $with_tests == yes ]]; then
    say "done; next: tools/test.sh --no-setup"
  else
    say "done; next: $build_dir/bin/dynslice --help, or tools/demo.sh"
  fi
}

# On one line: bash reads a script as it goes, and this one may be replaced while it runs.
main "$@"; exit
