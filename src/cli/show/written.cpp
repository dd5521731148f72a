#include "cli/show/written.h"

#include <cmath>
#include <iostream>

#include "cli/show/terminal.h"

namespace dynslice::cli {

void print_written(const CommonOptions& common, const std::filesystem::path& out) {
  std::cout << "Written to " << out.string() << ".";
  if (!common.recipe) std::cout << " Next: dynslice eval " << out.string() << " --ppl wikitext2";
  std::cout << '\n';
}

}  // namespace dynslice::cli
