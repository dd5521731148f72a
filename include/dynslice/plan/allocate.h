// How much of each layer to slice, given how redundant it is and an average (DynamicSlicing, arXiv 2411.03513, section
// 3).
#pragma once

#include <functional>
#include <vector>

#include "dynslice/plan/slice_plan.h"

namespace dynslice {

struct AllocateOptions {
  double average = 0.25;   // mean ratio s, in [0, 1)
  double base = 0.15;      // slicing base b of `lr`, in [0, s]
  double max_ratio = 0.8;  // s_max: no layer loses more; 1 for no limit, as in the reference
};

// Throws kUsage when the average is not in [0, 1) or above the largest ratio, or the base not in [0, average].
void check_options(const AllocateOptions& options);

// s_i = s for every layer (SliceGPT). Both allocators check their options first.
[[nodiscard]] std::vector<double> allocate_constant(size_t layers, const AllocateOptions& options);

// DynamicSlicing: v_i = (LR_i - min) / (max - min), s_i = b + (s - b) v_i / mean(v), so that the most redundant
// layer is sliced most; then capped at max_ratio. All redundancies equal gives `constant`.
[[nodiscard]] std::vector<double> allocate_by_redundancy(const std::vector<double>& layer_redundancy,
                                                         const AllocateOptions& options);

// MoDeGPT (arXiv 2408.09632, section 4): s_i = L s softmax(-BI_i / epsilon) of the block influences BI_i = 1 - LR_i, so
// that the layers that change the stream least lose most; then capped at max_ratio. Throws kUsage as check_options
// does.
[[nodiscard]] std::vector<double> allocate_by_influence(const std::vector<double>& layer_redundancy, double epsilon,
                                                        const AllocateOptions& options);

// Water-filling: what lies above `limit` is given to the other layers in proportion to their ratios (equally,
// where those are all 0), so that the mean stays what it was.
[[nodiscard]] std::vector<double> cap_ratios(std::vector<double> ratios, double limit);

// Bases that `--base auto` tries: the average, then 2 points less each time, down to 0 and including it.
[[nodiscard]] std::vector<double> base_candidates(double average);

}  // namespace dynslice
