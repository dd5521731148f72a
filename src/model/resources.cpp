#include "dynslice/model/resources.h"

#include <algorithm>

#include "dynslice/model/tensor_layout.h"
#include "model/resource_parts.h"

namespace dynslice {
namespace {

// Weights that quantize rounds at a time, about.
constexpr int64_t kRoundedValues = int64_t{1} << 20;

}  // namespace

Work& Work::operator+=(const Work& other) {
  forward_flops += other.forward_flops;
  rotation_flops += other.rotation_flops;
  moment_flops += other.moment_flops;
  eigen_cubes += other.eigen_cubes;
  bytes_read += other.bytes_read;
  bytes_streamed += other.bytes_streamed;
  return *this;
}

uint64_t ResourceEstimate::fixed_bytes() const { return total(parts); }

uint64_t stored_bytes(const Checkpoint& checkpoint) {
  uint64_t bytes = 0;
  for (const TensorInfo& tensor : checkpoint.tensors()) bytes += tensor.bytes;
  return bytes;
}

ResourceEstimate operator+(const ResourceEstimate& first, const ResourceEstimate& second) {
  const auto all = [](const ResourceEstimate& e) { return e.fixed_bytes() + e.stream_bytes; };
  ResourceEstimate sum = all(first) >= all(second) ? first : second;
  sum.work = first.work;
  sum.work += second.work;
  sum.output_bytes = first.output_bytes + second.output_bytes;
  return sum;
}

ResourceEstimate estimate_score(const Checkpoint& checkpoint, const ComputeOptions& compute, TextAmount text,
                                int64_t kept_streams, int64_t kept_values) {
  ResourceEstimate estimate;
  estimate.parts = larger(walking_parts(checkpoint, compute, text), embedding_parts(checkpoint.config(), compute));
  estimate.stream_bytes = u64(kept_streams * stream_bytes(checkpoint.config(), text) + kept_values * text.tokens() * 4);
  estimate.work = walking_work(checkpoint, text, 1);
  return estimate;
}

ResourceEstimate estimate_weight_scores(const Checkpoint& checkpoint) {
  constexpr uint64_t kReadBuffer = uint64_t{16} << 20;
  ResourceEstimate estimate;
  uint64_t largest = 0;
  for (int64_t layer = 0; layer < checkpoint.config().num_layers(); ++layer) {
    uint64_t bytes = 0;  // in memory: what is stored as bf16 stays so, all else becomes fp32
    for (const OutputTensor& weight : linear_weights(checkpoint.config(), layer, at::kFloat)) {
      const TensorInfo* info = checkpoint.find(weight.name);
      if (info == nullptr) continue;  // found missing when it is loaded
      bytes += u64(weight.shape.at(0) * weight.shape.at(1)) * (info->dtype == "BF16" ? 2 : 4);
      estimate.work.bytes_read += static_cast<double>(info->bytes);
    }
    largest = std::max(largest, bytes);
  }
  estimate.parts = {program_part(at::kCPU), {"layer_weights", largest}, {"read_buffer", kReadBuffer}};
  return estimate;
}

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

ResourceEstimate estimate_quantize(const Checkpoint& checkpoint, const ComputeOptions& compute, TextAmount text,
                                   bool by_gptq, uint64_t output_bytes) {
  const ModelConfig& config = checkpoint.config();
  ResourceEstimate estimate;
  estimate.output_bytes = output_bytes;
  const int64_t matrix =
      largest_of_layers(config, [&](const LayerShape& shape) { return largest_linear(config, shape); });
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
        {shape.input_width, shape.middle_width, shape.intermediate_size, shape.num_attention_heads * config.head_dim});
  });
  // The moment, in order and factorized in fp64, and the factor in fp32; then that and a matrix's codes, errors and
  // values.
  estimate.parts.push_back(
      {"moments_and_errors", std::max(u64(3 * widest * widest * 8), u64(widest * widest * 4 + 4 * matrix * 4))});
  estimate.parts = larger(std::move(estimate.parts), embedding_parts(config, compute));
  // The stream, and what attention mixes beside it.
  const int64_t mixed = largest_of_layers(config, [&](const LayerShape& shape) {
    return shape.num_attention_heads * config.head_dim * element_bytes(compute.dtype);
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
    const int64_t q = shape.num_attention_heads * config.head_dim, kv = shape.num_key_value_heads * config.head_dim;
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

ResourceEstimate estimate_resident(const Checkpoint& checkpoint, const ComputeOptions& compute,
                                   const ResidentUse& use) {
  const ModelConfig& config = checkpoint.config();
  const TextAmount prompts{use.batch, use.prompt_tokens};
  ComputeOptions at_once = compute;
  at_once.chunk_tokens = prompts.tokens();
  int64_t cache = 0;
  for (const LayerShape& shape : config.layers) cache += 2 * shape.num_key_value_heads * config.head_dim;
  cache *= use.batch * (use.prompt_tokens + use.decode_tokens) *
           (compute.device.is_cpu() ? 4 : element_bytes(compute.dtype));
  const int64_t weights = count_cost(config).parameters * element_bytes(compute.dtype);
  ResourceEstimate estimate;
  estimate.parts = {program_part(compute.device),
                    {"weights", u64(weights)},
                    {"cache", u64(cache)},
                    {"chunk_buffers", u64(chunk_bytes(config, at_once, prompts))},
                    {"logits", u64(use.batch * config.vocab_size * 4)}};
  estimate.work = walking_work(checkpoint, prompts, 1);
  estimate.work.forward_flops *= static_cast<double>(use.runs);
  estimate.work.bytes_streamed = static_cast<double>(use.runs * use.decode_tokens) * static_cast<double>(weights);
  return estimate;
}

void add_resident(ResourceEstimate& estimate, const Checkpoint& other, const ComputeOptions& compute,
                  const ResidentUse& use, const std::string& prefix) {
  const ResourceEstimate alone = estimate_resident(other, compute, use);
  for (const MemoryPart& part : alone.parts) {
    if (part.name != "weights" && part.name != "cache") continue;
    const auto same = std::ranges::find(estimate.parts, prefix + part.name, &MemoryPart::name);
    if (same == estimate.parts.end()) {
      estimate.parts.push_back({prefix + part.name, part.bytes});
    } else {
      same->bytes += part.bytes;
    }
  }
  estimate.work += alone.work;
}

ResourceEstimate estimate_training(const Checkpoint& checkpoint, const ComputeOptions& compute, TextAmount text,
                                   const TrainingUse& use) {
  const ModelConfig& config = checkpoint.config();
  int64_t weights = 0, activations = 0, largest = 0;
  for (int64_t index = use.first_layer; index < use.end_layer; ++index) {
    const LayerShape& shape = config.layers.at(static_cast<size_t>(index));
    const int64_t inner = activation_bytes(shape, config.head_dim, compute.dtype, use.micro_tokens);
    weights += layer_parameters(config, shape);
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
                    {"trained_parameters", u64(5 * 4 * use.parameters + 4 * use.kept_parameters)},
                    {"activations", u64(kept)},
                    {"temporary_activations", u64(3 * largest + (compute.device.is_cpu() ? kept / 4 : 0))},
                    {"logits", use.has_head ? u64(3 * 256 * config.vocab_size * 4) : 0}};
  if (use.matrices > 0)
    estimate.parts.push_back({"moments", u64(use.matrices * config.hidden_size * config.hidden_size * 8)});
  if (use.walks > 0) estimate.parts.push_back({"chunk_buffers", u64(chunk_bytes(config, compute, text))});
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

int64_t activation_bytes(const LayerShape& shape, int64_t head_dim, at::ScalarType dtype, int64_t tokens) {
  const int64_t size = element_bytes(dtype), heads = shape.num_attention_heads * head_dim;
  const int64_t kv = shape.num_key_value_heads * head_dim;
  // The streams of both halves; their normed copies; queries, keys and values before and after rotation and, in fp32,
  // as attention reads and writes them; the MLP's inner ones.
  const int64_t a_token = 4 * (shape.input_width + 2 * shape.middle_width) +
                          size * (shape.input_width + shape.middle_width + 2 * (heads + 2 * kv)) + 4 * 4 * heads +
                          size * (shape.read_rows() + 2 * shape.intermediate_size);
  return a_token * tokens;
}

ResourceEstimate estimate_conversion(const Checkpoint& checkpoint, uint64_t output_bytes) {
  constexpr uint64_t kChunks = 3 * (uint64_t{16} << 20);  // in fp32, as written, and what malloc keeps
  ResourceEstimate estimate;
  estimate.parts = {program_part(at::kCPU), {"chunks", kChunks}};
  estimate.output_bytes = output_bytes;
  estimate.work.bytes_read = static_cast<double>(stored_bytes(checkpoint) + output_bytes);
  return estimate;
}

}  // namespace dynslice
