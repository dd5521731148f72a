// What removing layers needs.
#pragma once

#include <cstdint>

#include "dynslice/model/checkpoint.h"
#include "dynslice/resources/estimate.h"
#include "dynslice/walk/layer_walk.h"

namespace dynslice {

// Trying shallower models beside the dense one.
struct DepthUse {
  int64_t streams = 1;        // alive at the worst moment
  double walks = 1;           // through all layers, that all layers computed make up
  int64_t losses = 0;         // models whose losses are measured
  int64_t matrices = 0;       // hidden × hidden in fp64, alive at the worst moment
  int64_t merged_layers = 0;  // in fp32, beside the one that is used
  uint64_t output_bytes = 0;
};
[[nodiscard]] ResourceEstimate estimate_depth(const Checkpoint& checkpoint, const ComputeOptions& compute,
                                              TextAmount text, const DepthUse& use);

}  // namespace dynslice
