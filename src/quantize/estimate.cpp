#include "dynslice/quantize/estimate.h"

#include <algorithm>

#include "dynslice/walk/walk_estimate.h"

namespace dynslice {
namespace {

// Weights that quantize rounds at a time, about.
constexpr int64_t kRoundedValues = int64_t{1} << 20;

}  // namespace

ResourceEstimate estimate_quantize(const Checkpoint& checkpoint, const ComputeOptions& compute, TextAmount text,
                                   bool by_gptq, uint64_t output_bytes) {
  const ModelConfig& config = checkpoint.config();
  ResourceEstimate estimate;
  estimate.output_bytes = output_bytes;
  const int64_t matrix = largest_of_layers(config, [&](const LayerShape& shape) { return largest_linear(shape); });
  if (!by_gptq) {
    // Rows of a matrix in fp32, their codes, and what is packed of them.
    estimate.parts = {program_part(at::kCPU), {"rows", u64(std::min(matrix, kRoundedValues) * (4 + 1 + 1))}};
    estimate.work.bytes_read = static_cast<double>(stored_bytes(checkpoint) + output_bytes);
    return estimate;
  }
  estimate.parts = walking_parts(checkpoint, compute, text);
  if (compute.dtype != at::kFloat)
    estimate.parts.push_back({"layer_weights_fp32", u64(layer_bytes(config, at::kFloat))});
  const int64_t widest = largest_of_layers(config, [&](const LayerShape& shape) {
    return std::max(
        {shape.input_width, shape.middle_width, shape.intermediate_size, shape.num_attention_heads * shape.head_dim});
  });
  // The moment, in order and factorized in fp64, and the factor in fp32; then that and a matrix's codes, errors and
  // values.
  estimate.parts.push_back(
      {"moments_and_errors", std::max(u64(3 * widest * widest * 8), u64(widest * widest * 4 + 4 * matrix * 4))});
  estimate.parts = larger(std::move(estimate.parts), embedding_parts(config, compute));
  // The stream, and what attention mixes beside it.
  const int64_t mixed = largest_of_layers(config, [&](const LayerShape& shape) {
    return shape.num_attention_heads * shape.head_dim * element_bytes(compute.dtype);
  });
  estimate.stream_bytes = u64(stream_bytes(config, text) + text.tokens() * mixed);
  estimate.work = walking_work(checkpoint, text, 1);
  const auto tokens = static_cast<double>(text.tokens());
  for (const LayerShape& shape : config.layers) {
    const auto add = [&](int64_t rows, int64_t columns) {
      const auto n = static_cast<double>(columns);
      estimate.work.moment_flops += 2 * 0.58 * n * n * tokens;
      estimate.work.rotation_flops += n * n * n / 3 + static_cast<double>(rows) * n * n;
    };
    const int64_t q = shape.num_attention_heads * shape.head_dim, kv = shape.num_key_value_heads * shape.head_dim;
    if (shape.has_attention()) {
      add(q + 2 * kv, shape.input_width);
      add(shape.middle_width, q);
    }
    add(shape.read_rows(), shape.middle_width);
    add(shape.output_width, shape.intermediate_size);
    // What is inside attention and MLP is computed twice.
    estimate.work.forward_flops += 2.0 * static_cast<double>(shape.read_rows() * shape.middle_width) * tokens;
  }
  estimate.work.bytes_read += static_cast<double>(output_bytes);
  return estimate;
}

ResourceEstimate estimate_plan_losses(const Checkpoint& checkpoint, const ComputeOptions& compute,
                                      TextAmount calibration, TextAmount held_out, const PlanLossUse& use) {
  const ModelConfig& config = checkpoint.config();
  ResourceEstimate estimate = estimate_quantize(checkpoint, compute, calibration, calibration.windows > 0, 0);
  std::vector<MemoryPart> walking = walking_parts(checkpoint, compute, held_out);
  walking.push_back({"quantized_layers", u64(2 * layer_bytes(config, at::kFloat))});
  estimate.parts = kept_together(std::move(estimate.parts), walking);
  estimate.parts = kept_together(std::move(estimate.parts), head_parts(config, compute, held_out));
  estimate.stream_bytes = u64(use.plans * stream_bytes(config, held_out) + stream_bytes(config, calibration));
  Work trials = walking_work(checkpoint, held_out, 1);
  trials.forward_flops *= use.walks;
  trials.forward_flops += 2.0 * static_cast<double>(use.plans) * static_cast<double>(config.vocab_size) *
                          static_cast<double>(config.head_columns()) * static_cast<double>(held_out.tokens());
  estimate.work += trials;
  const Work round = estimate.work;
  for (int64_t i = 1; i < use.rounds; ++i) estimate.work += round;
  return estimate;
}

}  // namespace dynslice
