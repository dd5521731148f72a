// Linear centered kernel alignment (Kornblith et al., arXiv 1905.00414) of all streams of a model, with the unbiased
// HSIC summed over minibatches (Nguyen et al., arXiv 2010.15327, equations 2 and 3).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "dynslice/score/score.h"
#include "dynslice/support/token_windows.h"
#include "dynslice/walk/journal.h"
#include "dynslice/walk/layer_walk.h"

namespace dynslice {

// Gram matrices of the minibatches of x [B, T, d], m of them a window (every m-th token, kCkaTokens at most), without
// their diagonals: [B * m, n, n] fp32. T is at least 4.
at::Tensor gram_matrices(const at::Tensor& x);

// The unbiased HSIC of all pairs of `grams`, matrices [n, n] of one minibatch in different streams: [s, s] fp64.
at::Tensor unbiased_hsic(const std::vector<at::Tensor>& grams);

// CKA of every pair of the streams x_0 ... x_L: [L + 1, L + 1] fp64, on the CPU. NaN where a stream does not vary.
at::Tensor cka_of_streams(const LayerWalk& walk, const TokenWindows& windows, const JournalPhase& journal);

}  // namespace dynslice
