// A plan, its scores and what it does to the model, as a table.
#pragma once

#include <optional>
#include <ostream>

#include "dynslice/jobs/planning.h"
#include "dynslice/jobs/sizes.h"

namespace dynslice::cli {

void print_plan(std::ostream& out, const SlicePlan& plan, const std::optional<LayerScores>& scores,
                const SizeChange& change);

}  // namespace dynslice::cli
