// The cosine of every token's vectors in two streams, in fp64.
#pragma once

#include <ATen/core/Tensor.h>

namespace dynslice {

// x, y [..., d] fp32 → [tokens] fp64 on the CPU. 2 marks a token whose norm is 0 in x or y; NaN one with NaN or
// Inf in it.
at::Tensor token_cosines(const at::Tensor& x, const at::Tensor& y);

inline constexpr double kZeroNorm = 2.0;

}  // namespace dynslice
