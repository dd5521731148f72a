#include "dynslice/depth/estimate.h"

#include <algorithm>

#include "dynslice/walk/walk_estimate.h"

namespace dynslice {

ResourceEstimate estimate_depth(const Checkpoint& checkpoint, const ComputeOptions& compute, TextAmount text,
                                const DepthUse& use) {
  const ModelConfig& config = checkpoint.config();
  const int64_t square = config.hidden_size * config.hidden_size * 8;
  ResourceEstimate estimate;
  estimate.parts = walking_parts(checkpoint, compute, text);
  if (use.matrices > 0) estimate.parts.push_back({"moments", u64(use.matrices * square)});
  if (use.merged_layers > 0)
    estimate.parts.push_back({"merged_layers", u64(use.merged_layers * layer_bytes(config, at::kFloat))});
  estimate.parts = larger(std::move(estimate.parts), embedding_parts(config, compute));
  if (use.losses > 0) estimate.parts = kept_together(std::move(estimate.parts), head_parts(config, compute, text));
  estimate.stream_bytes = u64(use.streams * stream_bytes(config, text));
  estimate.output_bytes = use.output_bytes;
  estimate.work = walking_work(checkpoint, text, 1);
  estimate.work.forward_flops *= use.walks;
  estimate.work.forward_flops += 2.0 * static_cast<double>(use.losses) * static_cast<double>(config.vocab_size) *
                                 static_cast<double>(config.head_columns()) * static_cast<double>(text.tokens());
  estimate.work.bytes_read += static_cast<double>(use.output_bytes);
  return estimate;
}

}  // namespace dynslice
