// MoDeGPT's choice of neurons (arXiv 2408.09632, section 4): ridge leverage scores.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace dynslice {

// The `count` neurons with the largest ℓ_j = (C (C + λI)⁻¹)_jj, λ being the mean diagonal of C [n, n] fp64, which stays
// as it is: ascending [count] int64.
[[nodiscard]] at::Tensor largest_leverage(const at::Tensor& moment, int64_t count);

}  // namespace dynslice
