// The spread of a layer's weights: what the Z-score Distribution (LayerwiseQuant, arXiv 2406.17415) is made of.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace dynslice {

// Share of all values w of the tensors together with (w - μ) / σ > 1, μ and σ (of the population) being those of all of
// them. 0 when they are all the same. `weights` are contiguous, fp32 or bf16, on the CPU. Sums are in fp64, over blocks
// whose borders depend on the sizes alone: the number of threads does not change a bit.
double share_of_outstanding(const std::vector<at::Tensor>& weights);

}  // namespace dynslice
