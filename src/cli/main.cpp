// The program: parses the command line, then loads the library. LibTorch takes 0.2 s to load, which --help does
// not wait for, and its OpenMP runtime reads OMP_WAIT_POLICY as it is loaded: threads that spin while they wait
// make everything 10 to 40 times slower as soon as another process wants the cores.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <string>
#include <system_error>

#include "cli/options/parse.h"
#include "cli/run.h"

namespace {

std::filesystem::path library_path() {
  std::error_code error;
  const auto program = std::filesystem::read_symlink("/proc/self/exe", error);
  if (error) return "libdynslice_cli.so";
  for (const char* folder : {DYNSLICE_LIBRARY_FOLDER, "../lib"}) {  // of an installed program, of a build folder
    const auto library = (program.parent_path() / folder / "libdynslice_cli.so").lexically_normal();
    if (std::filesystem::exists(library, error)) return library;
  }
  return "libdynslice_cli.so";
}

}  // namespace

int main(int argc, char** argv) {
  const auto parsed = dynslice::cli::parse_command_line(argc, argv);
  if (const int* exit_code = std::get_if<int>(&parsed)) return *exit_code;

  // A thread that waits spins for some microseconds, in which most waits end, and sleeps then.
  ::setenv("OMP_WAIT_POLICY", "passive", /*overwrite=*/0);
  ::setenv("GOMP_SPINCOUNT", "20000", /*overwrite=*/0);
  void* library = ::dlopen(library_path().c_str(), RTLD_NOW | RTLD_GLOBAL);
  if (library == nullptr) {
    std::cerr << "dynslice: cannot load its library: " << ::dlerror()
              << "; if LibTorch was moved or changed since, build or install dynslice again\n";
    return 1;
  }
  const auto run = reinterpret_cast<decltype(&dynslice_run_command)>(::dlsym(library, "dynslice_run_command"));
  if (run == nullptr) {
    std::cerr << "dynslice: " << ::dlerror() << "; program and library are of different versions\n";
    return 1;
  }
  const int exit_code = run(std::get<dynslice::cli::Command>(parsed));
#if !defined(__SANITIZE_ADDRESS__)  // which looks for leaks behind the last destructor
  // LibTorch needs 0.15 s to destroy its registries, for nothing: leave without it.
  std::cout.flush();
  std::cerr.flush();
  std::fflush(nullptr);
  std::_Exit(exit_code);
#endif
  return exit_code;
}
