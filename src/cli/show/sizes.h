// Sizes before and after, as every verb that makes a smaller model prints them.
#pragma once

#include <ostream>
#include <string>
#include <vector>

#include "dynslice/jobs/sizes.h"

namespace dynslice::cli {

// The table of sizes under `first`, a row of the method's own: name, before, after, change.
void print_sizes(std::ostream& out, const SizeChange& change, const std::vector<std::string>& first);
// Says so when a quantized source makes the bytes of the table no fair comparison.
void print_size_notice(std::ostream& out, const SizeChange& change);

}  // namespace dynslice::cli
