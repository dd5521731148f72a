// The spread of a layer's weights: what the Z-score Distribution (LayerwiseQuant, arXiv 2406.17415) is made of.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "dynslice/model/checkpoint.h"

namespace dynslice {

// Share of all values w of the tensors together with (w - μ) / σ > 1, μ and σ (of the population) being those of all of
// them. 0 when they are all the same. `weights` are contiguous, fp32 or bf16, on the CPU. Sums are in fp64, over blocks
// whose borders depend on the sizes alone: the number of threads does not change a bit.
double share_of_outstanding(const std::vector<at::Tensor>& weights);

// What a weight is held in for that: bf16 where it is stored so, which halves the memory; fp32, which holds all others
// exactly.
at::ScalarType held_dtype(const TensorInfo& weight);

}  // namespace dynslice
