// What modular compression needs.
#pragma once

#include <cstdint>

#include "dynslice/model/checkpoint.h"
#include "dynslice/resources/estimate.h"
#include "dynslice/walk/layer_walk.h"

namespace dynslice {

// Compressing layers. `compressed` is what is written, of `output_bytes`; null for a walk that only measures.
struct ModularUse {
  TextAmount calibration;
  TextAmount held_out;  // walked beside it
  TextAmount gradients = {};
  const ModelConfig* compressed = nullptr;
  uint64_t output_bytes = 0;
};
[[nodiscard]] ResourceEstimate estimate_modular(const Checkpoint& checkpoint, const ComputeOptions& compute,
                                                const ModularUse& use);

}  // namespace dynslice
