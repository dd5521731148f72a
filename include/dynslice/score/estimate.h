// What scoring needs.
#pragma once

#include <cstdint>

#include "dynslice/model/checkpoint.h"
#include "dynslice/resources/estimate.h"
#include "dynslice/walk/layer_walk.h"

namespace dynslice {

// Scoring; `kept_streams` are alive at a time (n + 1 for the metric window:n), and `kept_values` fp32 values a token
// beside them (of cka).
[[nodiscard]] ResourceEstimate estimate_score(const Checkpoint& checkpoint, const ComputeOptions& compute,
                                              TextAmount text, int64_t kept_streams = 1, int64_t kept_values = 0);

// Scoring by the weights alone (zd).
[[nodiscard]] ResourceEstimate estimate_weight_scores(const Checkpoint& checkpoint);

}  // namespace dynslice
