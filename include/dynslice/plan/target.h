// The average ratio at which a model becomes a given share smaller. What a ratio removes depends on the model: residual
// paths cost parameters, and embeddings may stay whole.
#pragma once

#include <functional>
#include <string_view>

#include "dynslice/plan/slice_plan.h"

namespace dynslice {

struct AverageSearch {
  double wanted = 0.25;   // share that is to go, in [0, 1)
  double largest = 0.8;   // no average above it is tried
  std::string_view what;  // "parameters", for messages
};

// The average in [0, largest] at which `share_removed(average)` comes nearest to what is wanted; it may rise in steps.
// Throws kUsage when the largest average removes less.
[[nodiscard]] double find_average(const AverageSearch& search,
                                  const std::function<double(double average)>& share_removed);

}  // namespace dynslice
