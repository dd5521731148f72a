#include "dynslice/train/estimate.h"

#include <algorithm>

#include "dynslice/walk/memory_plan.h"
#include "dynslice/walk/walk_estimate.h"

namespace dynslice {

MemoryPart gradient_directions(const ModelConfig& config, TextAmount gradients) {
  const int64_t square = config.hidden_size * config.hidden_size;
  return {"gradient_directions", u64(gradients.windows > 0 ? 2 * config.num_layers() * square * 4 : 0)};
}

ResourceEstimate estimate_sensitivity(const Checkpoint& checkpoint, const ComputeOptions& compute,
                                      TextAmount gradients) {
  const ModelConfig& config = checkpoint.config();
  ResourceEstimate estimate;
  if (gradients.windows == 0) return estimate;
  estimate.parts = walking_parts(checkpoint, compute, gradients);
  estimate.parts.push_back(
      {"output_matrix", u64(config.vocab_size * config.hidden_size * element_bytes(compute.dtype))});
  estimate.parts.push_back(gradient_directions(config, gradients));
  estimate.parts.push_back({"activations", u64(largest_of_layers(config, [&](const LayerShape& shape) {
                              return 2 * activation_bytes(shape, compute.dtype, gradients.length);
                            }))});
  const int64_t a_window = (config.num_layers() + 1) * stream_bytes(config, {1, gradients.length});
  estimate.stream_bytes =
      u64(std::min(gradients.windows * a_window, std::max(gradient_turn_bytes(checkpoint), a_window)));
  estimate.work = walking_work(checkpoint, gradients, 2);
  estimate.work.forward_flops *= 3;
  return estimate;
}

ResourceEstimate estimate_training(const Checkpoint& checkpoint, const ComputeOptions& compute, TextAmount text,
                                   const TrainingUse& use) {
  const ModelConfig& config = checkpoint.config();
  int64_t weights = 0, activations = 0, largest = 0;
  for (int64_t index = use.first_layer; index < use.end_layer; ++index) {
    const LayerShape& shape = config.layers.at(static_cast<size_t>(index));
    const int64_t inner = activation_bytes(shape, compute.dtype, use.micro_tokens);
    weights += layer_parameters(shape);
    largest = std::max(largest, inner);
    activations += use.recomputes ? 4 * shape.input_width * use.micro_tokens : inner;
  }
  const int64_t head = use.has_head ? config.vocab_size * config.head_columns() : 0;
  const int64_t embedding =
      use.has_head && !config.tie_word_embeddings ? config.vocab_size * config.embedding_columns() : 0;
  const int64_t kept = activations + (use.recomputes ? largest : 0);
  ResourceEstimate estimate;
  // Parameters, gradients, two moments and the best ones so far. Temporaries, and on the CPU what the heap keeps of
  // activations that are freed. Rows of logits, their exponentials and gradients.
  estimate.parts = {program_part(compute.device),
                    {"weights", u64((weights + head + embedding) * element_bytes(compute.dtype))},
                    {"trained_parameters", u64(5 * 4 * use.parameters + 4 * use.kept_parameters)}};
  // Streams are walked before they are trained on.
  std::vector<MemoryPart> walking;
  if (use.walks > 0) walking.push_back({"chunk_buffers", u64(chunk_bytes(config, compute, text))});
  const std::vector<MemoryPart> learning =
      larger({{"activations", u64(kept)},
              {"temporary_activations", u64(3 * largest + (compute.device.is_cpu() ? kept / 4 : 0))},
              {"logits", use.has_head ? u64(3 * 256 * config.vocab_size * 4) : 0}},
             std::move(walking));
  estimate.parts.insert(estimate.parts.end(), learning.begin(), learning.end());
  if (use.matrices > 0)
    estimate.parts.push_back({"moments", u64(use.matrices * config.hidden_size * config.hidden_size * 8)});
  estimate.stream_bytes = u64(use.streams * stream_bytes(config, text) / 4 * use.stream_item);
  estimate.output_bytes = use.output_bytes;
  estimate.work = walking_work(checkpoint, text, 1);
  estimate.work.forward_flops *= use.walks;
  // Forward, perhaps again, the gradients of what goes through, and those of parameters.
  const double passes = (use.recomputes ? 3.0 : 2.0) * static_cast<double>(use.trained_tokens) +
                        static_cast<double>(use.validated_tokens);
  const double heads = 2.0 * static_cast<double>(use.trained_tokens) + static_cast<double>(use.validated_tokens);
  estimate.work.forward_flops +=
      2.0 * (static_cast<double>(weights) * passes + static_cast<double>(head) * heads +
             2.0 * static_cast<double>(use.parameters) * static_cast<double>(use.trained_tokens));
  estimate.work.bytes_read += static_cast<double>(use.output_bytes);
  return estimate;
}

int64_t activation_bytes(const LayerShape& shape, at::ScalarType dtype, int64_t tokens) {
  const int64_t size = element_bytes(dtype), heads = shape.num_attention_heads * shape.head_dim;
  const int64_t kv = shape.num_key_value_heads * shape.head_dim;
  // The streams of both halves; their normed copies; queries, keys and values before and after rotation and, in fp32,
  // as attention reads and writes them; the MLP's inner ones.
  const int64_t a_token = 4 * (shape.input_width + 2 * shape.middle_width) +
                          size * (shape.input_width + shape.middle_width + 2 * (heads + 2 * kv)) + 4 * 4 * heads +
                          size * (shape.read_rows() + 2 * shape.intermediate_size);
  return a_token * tokens;
}

}  // namespace dynslice
