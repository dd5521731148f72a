// What measuring perplexity and divergence needs.
#pragma once

#include <cstdint>

#include "dynslice/model/checkpoint.h"
#include "dynslice/resources/estimate.h"
#include "dynslice/walk/layer_walk.h"

namespace dynslice {

// Perplexity, as many windows at a time as `stream_bytes` allow.
[[nodiscard]] ResourceEstimate estimate_perplexity(const Checkpoint& checkpoint, const ComputeOptions& compute,
                                                   TextAmount text, int64_t stream_bytes);

// Perplexity of two models and their divergence, as many windows at a time as `stream_bytes` allow for both streams.
[[nodiscard]] ResourceEstimate estimate_divergence(const Checkpoint& checkpoint, const Checkpoint& reference,
                                                   const ComputeOptions& compute, TextAmount text,
                                                   int64_t stream_bytes);

}  // namespace dynslice
