// The activations of all windows at one layer boundary: what enters a layer, or what leaves it.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace dynslice {

// Held as chunks of whole windows, each [B, T, width] fp32, in order. A layer replaces one chunk at a time, so
// that a walk needs one stream and the buffers of one chunk, and the width may change from layer to layer.
struct ResidualStream {
  std::vector<at::Tensor> chunks;

  int64_t tokens() const;
  // All windows as one tensor [N, T, width]; for tests and small models.
  at::Tensor gather() const;
};

}  // namespace dynslice
