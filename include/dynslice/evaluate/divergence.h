// How far a model's predictions are from those of another one with the same vocabulary, usually the dense one that it
// was made from: the figures of llama-perplexity --kl-divergence.
#pragma once

#include <array>
#include <cstdint>

#include "dynslice/evaluate/perplexity.h"
#include "dynslice/evaluate/statistics.h"

namespace dynslice {

// How one value a scored token is distributed.
struct Spread {
  static constexpr std::array<double, 11> kLevels = {0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999};
  Estimate mean;
  double minimum = 0, maximum = 0;
  std::array<double, kLevels.size()> quantiles{};  // below which these shares of the tokens lie
  [[nodiscard]] double median() const { return quantiles[5]; }
};

// The reference is the model to compare with. Standard errors take tokens for independent, as llama-perplexity does.
struct Divergence {
  Perplexity perplexity, reference;  // of both on the same tokens; seconds and speed are those of both together
  Estimate log_ratio;                // ln(perplexity / reference's), with the covariance of the losses
  Estimate ratio, difference;        // of the perplexities
  double correlation = 0;            // of the losses of both; 0 when one of them is constant
  Spread kl;                         // KL(reference || model) of the next token's distribution, in nats
  Spread probability_change;         // of the token that follows: the model's minus the reference's, in [-1, 1]
  Estimate rms_probability_change;
  Estimate same_top;  // share of the tokens before which both hold the same token the likeliest
};

// Walks the windows through both models, a turn of windows at a time, one model after the other, and compares their
// heads block by block of the vocabulary. Throws kUsage when the vocabularies are not of one size, and as
// measure_perplexity does.
[[nodiscard]] Divergence measure_divergence(const Checkpoint& checkpoint, const Checkpoint& reference,
                                            const ComputeOptions& compute, TokenWindows windows,
                                            const PerplexityOptions& options, ProgressSink& progress);

}  // namespace dynslice
