// Which token comes next: the likeliest one, or one drawn from what temperature, top-k and top-p leave.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <random>
#include <span>
#include <vector>

namespace dynslice {

struct SamplingOptions {
  double temperature = 0;  // logits are divided by it; 0: always the likeliest token
  int64_t top_k = 0;       // only the k likeliest tokens; 0: all
  double top_p = 1;        // only the fewest tokens that have this share of the probability together
  uint64_t seed = 0;
};

// Throws kUsage naming the value and what it must be.
void check_sampling(const SamplingOptions& options);

struct Candidate {
  int32_t id = 0;
  double probability = 0;
};

// The tokens that may be drawn, with probabilities that add up to 1: softmax(logits / temperature), of that the
// top_k, and of these the top_p, in the order in which transformers applies them. Of equal logits the smaller id
// counts as likelier. `temperature` is above 0. Throws kBadInput for a logit that is no number.
[[nodiscard]] std::vector<Candidate> candidates(std::span<const float> logits, const SamplingOptions& options);

// Guarantees: the same logits and seed give the same tokens on every machine, device and number of threads.
class Sampler {
 public:
  // Throws as check_sampling does.
  explicit Sampler(const SamplingOptions& options);

  // The next token for logits fp32 [vocab_size], on any device.
  int32_t next(const at::Tensor& logits);

 private:
  SamplingOptions options_;
  std::mt19937_64 random_;
};

}  // namespace dynslice
