// Where a checkpoint was written to.
#pragma once

#include <filesystem>

#include "dynslice/jobs/requests.h"

namespace dynslice::cli {

// "Written to OUT", and what one may do next.
void print_written(const CommonOptions& common, const std::filesystem::path& out);

}  // namespace dynslice::cli
