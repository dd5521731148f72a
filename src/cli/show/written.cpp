#include "cli/show/written.h"

#include <cmath>

#include "cli/show/terminal.h"

namespace dynslice::cli {

void print_written(std::ostream& out, const CommonOptions& common, const std::filesystem::path& folder) {
  out << "Written to " << folder.string() << ".";
  if (!common.recipe) out << " Next: dynslice eval " << folder.string() << " --ppl wikitext2";
  out << '\n';
}

}  // namespace dynslice::cli
