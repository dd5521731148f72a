// What slicing needs.
#pragma once

#include <cstdint>

#include "dynslice/model/checkpoint.h"
#include "dynslice/resources/estimate.h"
#include "dynslice/walk/layer_walk.h"

namespace dynslice {

// Slicing. `sliced` is what is written, of `output_bytes`; null for a trial that only measures.
struct SliceUse {
  TextAmount calibration;
  TextAmount held_out;        // walked beside it
  TextAmount gradients = {};  // of estimate_sensitivity, when its result is kept meanwhile; the same below
  bool refits = false;        // with the dense stream beside that of the sliced model
  const ModelConfig* sliced = nullptr;
  uint64_t output_bytes = 0;
};
[[nodiscard]] ResourceEstimate estimate_slice(const Checkpoint& checkpoint, const ComputeOptions& compute,
                                              const SliceUse& use);

// Slicing in one basis: a walk that finds it and one that slices, with the dense stream beside that of the sliced model
// where matrices are refitted.
struct GlobalUse {
  TextAmount calibration;
  TextAmount gradients = {};
  bool refits = true;
  const ModelConfig* sliced = nullptr;
  uint64_t output_bytes = 0;
};
[[nodiscard]] ResourceEstimate estimate_slice_globally(const Checkpoint& checkpoint, const ComputeOptions& compute,
                                                       const GlobalUse& use);

}  // namespace dynslice
