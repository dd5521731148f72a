// What quantizing needs.
#pragma once

#include <cstdint>

#include "dynslice/model/checkpoint.h"
#include "dynslice/resources/estimate.h"
#include "dynslice/walk/layer_walk.h"

namespace dynslice {

// Quantizing the matrices of all layers, one at a time; `by_gptq` with the text passing through them.
[[nodiscard]] ResourceEstimate estimate_quantize(const Checkpoint& checkpoint, const ComputeOptions& compute,
                                                 TextAmount text, bool by_gptq, uint64_t output_bytes);

// Losses of many quantized models in one walk over the held-out text, the calibration text beside it.
struct PlanLossUse {
  int64_t plans = 1;   // streams alive at the worst moment
  int64_t rounds = 1;  // that all of it is done
  double walks = 1;    // through all layers, that all layers computed in a round make up
};
[[nodiscard]] ResourceEstimate estimate_plan_losses(const Checkpoint& checkpoint, const ComputeOptions& compute,
                                                    TextAmount calibration, TextAmount held_out,
                                                    const PlanLossUse& use);

}  // namespace dynslice
