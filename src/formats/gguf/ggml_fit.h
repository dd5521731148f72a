// The search for the grid of a block: scales, and offsets where the format has them.
#pragma once

#include <span>

#include "formats/gguf/ggml_layout.h"

namespace dynslice::ggml {

// The grid that makes a small Σ w (v - v̂)² of the values of one block; `weights` may be empty for all 1. False when a
// scale or a value is too large for half precision, or a value is no number.
bool fit_grid(const Layout& layout, std::span<const float> values, std::span<const float> weights, BlockGrid& grid);

}  // namespace dynslice::ggml
