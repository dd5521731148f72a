#include "dynslice/walk/walk_estimate.h"

#include "dynslice/model/decoder_layer.h"
#include "dynslice/support/machine.h"
#include "dynslice/tensor/kernels.h"
#include "dynslice/tensor/logit_blocks.h"

namespace dynslice {
namespace {

// What the libraries take once they compute: code, threads' stacks and scratch, and buffers that malloc keeps.
constexpr uint64_t kLibraryBytes = uint64_t{112} << 20;
// The same on a CUDA device: kernels, which are loaded when they are first needed, and the work space of cuBLAS.
constexpr uint64_t kDeviceLibraryBytes = uint64_t{256} << 20;

int64_t widest_stream(const ModelConfig& config) {
  return std::max(config.embedding_width, largest_of_layers(config, [](const LayerShape& shape) {
                    return std::max({shape.input_width, shape.middle_width, shape.output_width});
                  }));
}

int64_t chunk_size(const ComputeOptions& compute, TextAmount text) {
  const int64_t windows = std::max<int64_t>(1, compute.chunk_tokens / std::max<int64_t>(1, text.length));
  return std::min(windows, std::max<int64_t>(1, text.windows)) * text.length;
}

// Bytes of a number while it is multiplied.
int64_t multiplied_bytes(const ComputeOptions& compute) {
  const bool by_fp32 = compute.device.is_cpu() && !kernels::multiplies(compute.dtype);
  return by_fp32 ? 4 : element_bytes(compute.dtype);
}

}  // namespace

MemoryPart program_part(at::Device device) {
  return {"program", device.is_cuda() ? kDeviceLibraryBytes : current_rss_bytes() + kLibraryBytes};
}

int64_t layer_parameters(const LayerShape& shape) {
  int64_t parameters = 0;
  for (const MatrixPart& one : matrix_parts(shape)) parameters += one.rows * one.columns;
  return parameters;
}

int64_t largest_linear(const LayerShape& shape) {
  int64_t qkv = (shape.num_attention_heads + 2 * shape.num_key_value_heads) * shape.head_dim;
  if (shape.is_delta()) qkv = shape.delta.channels() + shape.delta.values();
  return std::max(qkv * shape.input_width, shape.read_rows() * shape.middle_width);
}

int64_t chunk_bytes(const ModelConfig& config, const ComputeOptions& compute, TextAmount text) {
  const int64_t width = widest_stream(config), size = multiplied_bytes(compute);
  const int64_t a_token = largest_of_layers(config, [&](const LayerShape& shape) {
    const int64_t heads = (2 * shape.num_attention_heads + 2 * shape.num_key_value_heads) * shape.head_dim;
    const int64_t mixing =
        shape.is_delta() ? 6 * 4 * (shape.delta.channels() + shape.delta.values()) : 2 * heads * size;
    return std::max(mixing, 3 * shape.intermediate_size * size);
  });
  // The normed chunk; what the half layer writes, in the dtype and in fp32; the shortcut's part.
  int64_t bytes = chunk_size(compute, text) * (a_token + width * (2 * size + 2 * 4));
  if (config.sliding_window.value_or(text.length) < text.length) bytes += text.length * text.length * 4;
  // The heap keeps freed buffers, whose room those of other sizes do not always fit into: up to half as much was seen.
  return compute.device.is_cpu() ? bytes + bytes / 2 : bytes;
}

int64_t stream_bytes(const ModelConfig& config, TextAmount text) { return text.tokens() * widest_stream(config) * 4; }

int64_t layer_bytes(const ModelConfig& config, at::ScalarType dtype) {
  return largest_of_layers(config, [&](const LayerShape& shape) {
    return element_bytes(dtype) * layer_parameters(shape) +
           4 * (shortcut_parameters(shape.attn_shortcut, shape.input_width, shape.middle_width) +
                shortcut_parameters(shape.mlp_shortcut, shape.middle_width, shape.output_width));
  });
}

std::vector<MemoryPart> walking_parts(const Checkpoint& checkpoint, const ComputeOptions& compute, TextAmount text) {
  const ModelConfig& config = checkpoint.config();
  const int64_t repacked = largest_of_layers(config, [&](const LayerShape& shape) { return largest_linear(shape); });
  return {program_part(compute.device),
          {"layer_weights", u64(layer_bytes(config, compute.dtype))},
          {"repacked_weights", u64(repacked * multiplied_bytes(compute))},
          {"chunk_buffers", u64(chunk_bytes(config, compute, text))}};
}

std::vector<MemoryPart> embedding_parts(const ModelConfig& config, const ComputeOptions& compute) {
  const int64_t block = std::min(config.vocab_size, kVocabularyBlock) * config.embedding_columns();
  return {program_part(compute.device), {"embedding_block", u64(2 * block * 4)}};
}

std::vector<MemoryPart> head_parts(const ModelConfig& config, const ComputeOptions& compute, TextAmount text) {
  const int64_t rows = std::min(config.vocab_size, kVocabularyBlock);
  const int64_t tokens = std::min(text.tokens(), logit_block(compute.device).tokens);
  return {program_part(compute.device),
          {"head_block", u64(rows * config.head_columns() * (4 + element_bytes(compute.dtype)))},
          {"logits", u64(3 * tokens * rows * 4)},
          {"losses", u64(3 * text.tokens() * 8)}};
}

std::vector<MemoryPart> compared_head_parts(const ModelConfig& first, const ModelConfig& second,
                                            const ComputeOptions& compute, TextAmount text) {
  const int64_t rows = std::min(first.vocab_size, kVocabularyBlock);
  const int64_t tokens = std::min(text.tokens(), logit_block(compute.device).tokens);
  // On a device logits and exponentials are in fp64 as well.
  const int64_t logits = compute.device.is_cpu() ? 3 * 4 : 2 * 4 + 4 * 8;
  return {program_part(compute.device),
          {"head_blocks", u64(rows * (first.head_columns() + second.head_columns()) * 2 * 4)},
          {"logits", u64(logits * tokens * rows)},
          {"losses", u64(16 * text.tokens() * 8)}};
}

double attention_flops(const ModelConfig& config, TextAmount text) {
  double flops = 0;  // scores and their use: half of T x T each
  for (const LayerShape& shape : config.layers) {
    flops += 2.0 * static_cast<double>(shape.num_attention_heads * shape.head_dim) * static_cast<double>(text.length);
  }
  return flops * static_cast<double>(text.tokens());
}

Work walking_work(const Checkpoint& checkpoint, TextAmount text, int64_t walks) {
  const ModelConfig& config = checkpoint.config();
  int64_t multiply_adds = 0;
  for (const LayerShape& shape : config.layers) {
    multiply_adds += layer_parameters(shape);
    multiply_adds += shortcut_multiply_adds(shape.attn_shortcut, shape.input_width, shape.middle_width) +
                     shortcut_multiply_adds(shape.mlp_shortcut, shape.middle_width, shape.output_width);
  }
  Work work;
  work.forward_flops =
      2.0 * static_cast<double>(multiply_adds) * static_cast<double>(text.tokens()) + attention_flops(config, text);
  work.bytes_read = static_cast<double>(stored_bytes(checkpoint)) * static_cast<double>(walks);
  return work;
}

ResourceEstimate estimate_resident(const Checkpoint& checkpoint, const ComputeOptions& compute,
                                   const ResidentUse& use) {
  const ModelConfig& config = checkpoint.config();
  const TextAmount prompts{use.batch, use.prompt_tokens};
  ComputeOptions at_once = compute;
  at_once.chunk_tokens = prompts.tokens();
  int64_t cache = 0;
  int64_t memories = 0;  // of gated delta nets, however long the text
  for (const LayerShape& shape : config.layers) {
    const DeltaShape& delta = shape.delta;
    if (shape.is_delta()) {
      memories += 4 * use.batch * (delta.values() * delta.key_dim + (delta.taps - 1) * delta.channels());
    } else {
      cache += 2 * shape.num_key_value_heads * shape.head_dim;
    }
  }
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

ResourceEstimate estimate_conversion(const Checkpoint& checkpoint, uint64_t output_bytes) {
  constexpr uint64_t kChunks = 3 * (uint64_t{16} << 20);  // in fp32, as written, and what malloc keeps
  ResourceEstimate estimate;
  estimate.parts = {program_part(at::kCPU), {"chunks", kChunks}};
  estimate.output_bytes = output_bytes;
  estimate.work.bytes_read = static_cast<double>(stored_bytes(checkpoint) + output_bytes);
  return estimate;
}

}  // namespace dynslice
