#include "dynslice/evaluate/estimate.h"

#include <algorithm>

#include "dynslice/walk/walk_estimate.h"

namespace dynslice {

ResourceEstimate estimate_divergence(const Checkpoint& checkpoint, const Checkpoint& reference,
                                     const ComputeOptions& compute, TextAmount text, int64_t turn_bytes) {
  const int64_t a_window = std::max<int64_t>(
      1, stream_bytes(checkpoint.config(), {1, text.length}) + stream_bytes(reference.config(), {1, text.length}));
  const int64_t in_turn = std::clamp<int64_t>(turn_bytes / a_window, 1, std::max<int64_t>(1, text.windows));
  const TextAmount turn{in_turn, text.length};
  ResourceEstimate estimate;
  estimate.parts = compared_head_parts(checkpoint.config(), reference.config(), compute, turn);
  // The results of all turns: three values a token in fp64, and two more while they are summed up.
  estimate.parts.push_back({"comparisons", u64(8 * text.tokens() * 8)});
  const uint64_t results = estimate.parts.back().bytes;
  for (const Checkpoint* one : {&checkpoint, &reference}) {
    const ModelConfig& config = one->config();
    for (std::vector<MemoryPart> walking : {walking_parts(*one, compute, turn), embedding_parts(config, compute)}) {
      walking.push_back({"comparisons", results});
      estimate.parts = larger(std::move(estimate.parts), std::move(walking));
    }
    estimate.work += walking_work(*one, text, (text.windows + in_turn - 1) / in_turn);
    estimate.work.forward_flops += 2.0 * static_cast<double>(config.vocab_size) *
                                   static_cast<double>(config.head_columns()) * static_cast<double>(text.tokens());
  }
  estimate.stream_bytes = u64(stream_bytes(checkpoint.config(), turn) + stream_bytes(reference.config(), turn));
  return estimate;
}

ResourceEstimate estimate_perplexity(const Checkpoint& checkpoint, const ComputeOptions& compute, TextAmount text,
                                     int64_t turn_bytes) {
  const ModelConfig& config = checkpoint.config();
  const int64_t a_window = std::max<int64_t>(1, stream_bytes(config, {1, text.length}));
  const int64_t in_turn = std::clamp<int64_t>(turn_bytes / a_window, 1, std::max<int64_t>(1, text.windows));
  const TextAmount turn{in_turn, text.length};
  ResourceEstimate estimate;
  estimate.parts = larger(larger(walking_parts(checkpoint, compute, turn), embedding_parts(config, compute)),
                          head_parts(config, compute, turn));
  estimate.stream_bytes = u64(stream_bytes(config, turn));
  estimate.work = walking_work(checkpoint, text, (text.windows + in_turn - 1) / in_turn);
  estimate.work.forward_flops += 2.0 * static_cast<double>(config.vocab_size) *
                                 static_cast<double>(config.head_columns()) * static_cast<double>(text.tokens());
  return estimate;
}

}  // namespace dynslice
