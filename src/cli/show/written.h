// Where a checkpoint was written to.
#pragma once

#include <filesystem>
#include <ostream>

#include "dynslice/jobs/requests.h"

namespace dynslice::cli {

// "Written to OUT", and what one may do next.
void print_written(std::ostream& out, const CommonOptions& common, const std::filesystem::path& folder);

}  // namespace dynslice::cli
