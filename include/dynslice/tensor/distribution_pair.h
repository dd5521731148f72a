// Two distributions over one vocabulary for each of many rows, of which only sums are kept: enough for their divergence
// and for whether both have the same likeliest token.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace dynslice {

// Guarantees: every column of the vocabulary is added once, in any blocks; the results depend on how it is cut up by
// rounding only, and are exactly those of equal distributions where the logits are equal.
class DistributionPairs {
 public:
  DistributionPairs(int64_t rows, at::Device device);

  // Adds columns [begin, begin + c) of rows [first, first + n): the logits [n, c] of the model and of the reference.
  void add(int64_t first, int64_t begin, const at::Tensor& logits, const at::Tensor& reference_logits);

  [[nodiscard]] at::Tensor log_sums() const;            // log Σ exp(logit) of the model, fp64 [rows]
  [[nodiscard]] at::Tensor reference_log_sums() const;  // of the reference
  [[nodiscard]] at::Tensor divergences() const;         // KL(reference || model) in nats, fp64 [rows]
  [[nodiscard]] at::Tensor same_top() const;            // bool [rows]; of equal logits the first column is the top

 private:
  at::Tensor column(int64_t index) const { return state_.select(1, index); }

  at::Tensor state_;  // fp64 [rows, 7]: see the .cpp
};

}  // namespace dynslice
