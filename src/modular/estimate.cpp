#include "dynslice/modular/estimate.h"

#include <algorithm>

#include "dynslice/train/estimate.h"
#include "dynslice/walk/walk_estimate.h"

namespace dynslice {

ResourceEstimate estimate_modular(const Checkpoint& checkpoint, const ComputeOptions& compute, const ModularUse& use) {
  const ModelConfig& config = checkpoint.config();
  const int64_t d = config.hidden_size;
  const int64_t n = largest_of_layers(config, [](const LayerShape& shape) { return shape.intermediate_size; });
  const int64_t q =
      largest_of_layers(config, [&](const LayerShape& shape) { return shape.num_attention_heads * shape.head_dim; });
  ResourceEstimate estimate;
  estimate.parts = walking_parts(checkpoint, compute, use.calibration);
  if (compute.dtype != at::kFloat)
    estimate.parts.push_back({"layer_weights_fp32", u64(layer_bytes(config, at::kFloat))});
  // The moment and its factor, or that and the inverse, of which what is not given back at once stays with the process;
  // the rows twice, the cross moment and what is solved for; G with its root; and the moment of what attention mixes.
  estimate.parts.push_back({"moments", u64(5 * n * n * 4 + 5 * n * d * 8 + 3 * d * d * 8 + q * q * 8)});
  estimate.parts.push_back(gradient_directions(config, use.gradients));
  estimate.parts = larger(std::move(estimate.parts), embedding_parts(config, compute));
  // Of the compressed model and of the dense one; beside them what attention mixes.
  const TextAmount both{2 * use.calibration.windows + use.held_out.windows, use.calibration.length};
  estimate.stream_bytes = u64(stream_bytes(config, both) + stream_bytes(config, use.calibration));
  estimate.output_bytes = use.output_bytes;
  estimate.work = walking_work(checkpoint, both, 1);
  const auto tokens = static_cast<double>(use.calibration.tokens());
  for (const LayerShape& shape : config.layers) {
    const auto inner = static_cast<double>(shape.intermediate_size);
    estimate.work.moment_flops += 2 * inner * (0.58 * inner + static_cast<double>(d)) * tokens;
    // Factor, inverse and what the elimination takes, in fp64.
    estimate.work.rotation_flops += 3 * inner * inner * inner;
    estimate.work.forward_flops += 2.0 * static_cast<double>(shape.read_rows() * d) * tokens;
  }
  return estimate;
}

}  // namespace dynslice
