// Which directions of a stream are worth keeping.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace dynslice {

// The orthonormal directions [d, keep] fp64 that carry most of `energy` C [d, d] fp64, which is used up; with
// `gradients` G [d, d] fp64 (undefined: none), those that matter to the loss too: the first eigenvectors of exp(log C +
// log G / 2).
at::Tensor leading_directions(at::Tensor energy, const at::Tensor& gradients, int64_t keep);

}  // namespace dynslice
