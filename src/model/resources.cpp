#include "dynslice/model/resources.h"

#include <algorithm>
#include <cmath>

#include "dynslice/model/tensor_layout.h"
#include "dynslice/support/machine.h"
#include "model/logit_blocks.h"

namespace dynslice {
namespace {

// What the libraries take once they compute: code, threads' stacks and scratch, and buffers that malloc keeps.
constexpr uint64_t kLibraryBytes = uint64_t{112} << 20;
// The same on a CUDA device: kernels, which are loaded when they are first needed, and the work space of cuBLAS.
constexpr uint64_t kDeviceLibraryBytes = uint64_t{256} << 20;
// Weights that quantize rounds at a time, about.
constexpr int64_t kRoundedValues = int64_t{1} << 20;

uint64_t u64(int64_t value) { return static_cast<uint64_t>(std::max<int64_t>(0, value)); }

// Of the memory that everything else is in as well: a device's does not hold the program.
MemoryPart program_part(at::Device device) {
  return {"program", device.is_cuda() ? kDeviceLibraryBytes : current_rss_bytes() + kLibraryBytes};
}

int64_t item(at::ScalarType dtype) { return static_cast<int64_t>(c10::elementSize(dtype)); }

int64_t layer_parameters(const ModelConfig& config, const LayerShape& shape) {
  const int64_t q = shape.num_attention_heads * config.head_dim, kv = shape.num_key_value_heads * config.head_dim;
  return (q + 2 * kv) * shape.input_width + q * shape.middle_width + shape.read_rows() * shape.middle_width +
         shape.intermediate_size * shape.output_width;
}

// Rows times columns of the largest linear: products may repack it.
int64_t largest_linear(const ModelConfig& config, const LayerShape& shape) {
  const int64_t qkv = (shape.num_attention_heads + 2 * shape.num_key_value_heads) * config.head_dim * shape.input_width;
  return std::max(qkv, shape.read_rows() * shape.middle_width);
}

template <typename PerLayer>
int64_t largest_of_layers(const ModelConfig& config, PerLayer per_layer) {
  int64_t largest = 0;
  for (const LayerShape& shape : config.layers) largest = std::max(largest, per_layer(shape));
  return largest;
}

int64_t widest_stream(const ModelConfig& config) {
  return std::max(config.embedding_width, largest_of_layers(config, [](const LayerShape& shape) {
                    return std::max({shape.input_width, shape.middle_width, shape.output_width});
                  }));
}

int64_t chunk_size(const ComputeOptions& compute, TextAmount text) {
  const int64_t windows = std::max<int64_t>(1, compute.chunk_tokens / std::max<int64_t>(1, text.length));
  return std::min(windows, std::max<int64_t>(1, text.windows)) * text.length;
}

// What one chunk needs on its way through half a layer, MLP or attention.
int64_t chunk_bytes(const ModelConfig& config, const ComputeOptions& compute, TextAmount text) {
  const int64_t width = widest_stream(config), size = item(compute.dtype);
  const int64_t a_token = largest_of_layers(config, [&](const LayerShape& shape) {
    const int64_t heads = (2 * shape.num_attention_heads + 2 * shape.num_key_value_heads) * config.head_dim;
    return std::max(2 * heads, 3 * shape.intermediate_size) * size;
  });
  // The normed chunk; what the half layer writes, in the dtype and in fp32; the shortcut's part.
  int64_t bytes = chunk_size(compute, text) * (a_token + width * (2 * size + 2 * 4));
  if (config.sliding_window.value_or(text.length) < text.length) bytes += text.length * text.length * 4;
  return bytes;
}

int64_t stream_bytes(const ModelConfig& config, TextAmount text) { return text.tokens() * widest_stream(config) * 4; }

// With the shortcuts, whose larger ones are fp32.
int64_t layer_bytes(const ModelConfig& config, at::ScalarType dtype) {
  return largest_of_layers(config, [&](const LayerShape& shape) {
    return item(dtype) * layer_parameters(config, shape) +
           4 * (shortcut_parameters(shape.attn_shortcut, shape.input_width, shape.middle_width) +
                shortcut_parameters(shape.mlp_shortcut, shape.middle_width, shape.output_width));
  });
}

// A layer's weights and everything a chunk needs; the same for every verb that walks.
std::vector<MemoryPart> walking_parts(const Checkpoint& checkpoint, const ComputeOptions& compute, TextAmount text) {
  const ModelConfig& config = checkpoint.config();
  const int64_t repacked =
      largest_of_layers(config, [&](const LayerShape& shape) { return largest_linear(config, shape); });
  return {program_part(compute.device),
          {"layer_weights", u64(layer_bytes(config, compute.dtype))},
          {"repacked_weights", u64(repacked * item(compute.dtype))},
          {"chunk_buffers", u64(chunk_bytes(config, compute, text))}};
}

uint64_t total(const std::vector<MemoryPart>& parts) {
  uint64_t sum = 0;
  for (const MemoryPart& part : parts) sum += part.bytes;
  return sum;
}

std::vector<MemoryPart> larger(std::vector<MemoryPart> first, std::vector<MemoryPart> second) {
  return total(first) >= total(second) ? std::move(first) : std::move(second);
}

// One after the other, where what the first gave back stays with the process: the program once, all else together.
std::vector<MemoryPart> kept_together(std::vector<MemoryPart> first, const std::vector<MemoryPart>& second) {
  for (const MemoryPart& part : second) {
    if (part.name != "program") first.push_back(part);
  }
  return first;
}

// Blocks of the embedding matrix, as stored and in fp32.
std::vector<MemoryPart> embedding_parts(const ModelConfig& config, const ComputeOptions& compute) {
  const int64_t block = std::min(config.vocab_size, kVocabularyBlock) * config.embedding_columns();
  return {program_part(compute.device), {"embedding_block", u64(2 * block * 4)}};
}

std::vector<MemoryPart> head_parts(const ModelConfig& config, const ComputeOptions& compute, TextAmount text) {
  const int64_t rows = std::min(config.vocab_size, kVocabularyBlock);
  const int64_t tokens = std::min(text.tokens(), logit_block(compute.device).tokens);
  return {program_part(compute.device),
          {"head_block", u64(rows * config.head_columns() * (4 + item(compute.dtype)))},
          {"logits", u64(3 * tokens * rows * 4)},
          {"losses", u64(3 * text.tokens() * 8)}};
}

// Two heads side by side, with rows and logits in fp32.
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
    flops += 2.0 * static_cast<double>(shape.num_attention_heads * config.head_dim) * static_cast<double>(text.length);
  }
  return flops * static_cast<double>(text.tokens());
}

Work walking_work(const Checkpoint& checkpoint, TextAmount text, int64_t walks) {
  const ModelConfig& config = checkpoint.config();
  int64_t multiply_adds = 0;
  for (const LayerShape& shape : config.layers) {
    multiply_adds += layer_parameters(config, shape);
    multiply_adds += shortcut_multiply_adds(shape.attn_shortcut, shape.input_width, shape.middle_width) +
                     shortcut_multiply_adds(shape.mlp_shortcut, shape.middle_width, shape.output_width);
  }
  Work work;
  work.forward_flops =
      2.0 * static_cast<double>(multiply_adds) * static_cast<double>(text.tokens()) + attention_flops(config, text);
  work.bytes_read = static_cast<double>(stored_bytes(checkpoint)) * static_cast<double>(walks);
  return work;
}

// Multiplications and additions of a token on the way from a half layer to the next (slice/basis.h: Turn).
double turn_flops(int64_t hidden_size, int64_t in, int64_t out, ShortcutKind kind) {
  const int64_t rank = hidden_size - std::min(in, out);
  const int64_t multiply_adds = kind == ShortcutKind::kMatrix ? hidden_size * out
                                : out == hidden_size          ? 0
                                                              : rank * (hidden_size + out);
  return 2.0 * static_cast<double>(multiply_adds);
}

// What a refit behind a rotation has beside the streams: a moment with factor and inverse, and what is solved for.
uint64_t refit_bytes(const ModelConfig& config, bool refits) {
  const int64_t d = config.hidden_size;
  const int64_t n = largest_of_layers(config, [&](const LayerShape& shape) {
    return std::max(shape.intermediate_size, shape.num_attention_heads * config.head_dim);
  });
  return refits ? u64(5 * n * n * 4 + 4 * n * d * 8 + d * d * 8) : 0;
}

// Refits of all matrices: moments and least squares of what readers read and writers write, and the forward in front of
// the writers once more.
void add_refits(Work& work, const ModelConfig& config, TextAmount text) {
  const auto d = static_cast<double>(config.hidden_size), tokens = static_cast<double>(text.tokens());
  work.forward_flops += attention_flops(config, text);
  for (const LayerShape& shape : config.layers) {
    work.forward_flops += 2 * 0.9 * static_cast<double>(layer_parameters(config, shape)) * tokens;
    work.moment_flops += 2 * 2 * 1.58 * d * d * tokens;
    for (const int64_t inside : {shape.num_attention_heads * config.head_dim, shape.intermediate_size}) {
      const auto inner = static_cast<double>(inside);
      work.moment_flops += 2 * inner * (0.58 * inner + d) * tokens;
      work.rotation_flops += 3 * inner * inner * inner;
    }
  }
}

// One layer sliced to `shape`: its linears read sliced streams and write whole ones, which then are turned. Of a shape
// that nobody knows yet, a turn is taken to be half a matrix.
void add_slicing(Work& work, const ModelConfig& config, const LayerShape& shape, bool is_known, int64_t tokens) {
  const int64_t d = config.hidden_size, q = shape.num_attention_heads * config.head_dim;
  const int64_t kv = shape.num_key_value_heads * config.head_dim;
  const auto half = [&](int64_t reading, int64_t writing, int64_t in, int64_t out, ShortcutKind kind) {
    const double products = 2.0 * static_cast<double>(reading * in + writing * d);
    const double turn = is_known ? turn_flops(d, in, out, kind) : static_cast<double>(d * d);
    work.forward_flops += (products + turn) * static_cast<double>(tokens);
    work.rotation_flops += products * static_cast<double>(d) + turn * static_cast<double>(writing);
  };
  half(q + 2 * kv, q, shape.input_width, shape.middle_width, shape.attn_shortcut.kind);
  half(shape.read_rows(), shape.intermediate_size, shape.middle_width, shape.output_width, shape.mlp_shortcut.kind);
}

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

ResourceEstimate estimate_slice(const Checkpoint& checkpoint, const ComputeOptions& compute, const SliceUse& use) {
  const ModelConfig& config = checkpoint.config();
  const auto& [calibration, held_out, refits, sliced, output_bytes] = use;
  const int64_t d = config.hidden_size, square = d * d * 8;
  const double layers = static_cast<double>(config.num_layers());
  ResourceEstimate estimate;
  estimate.parts = walking_parts(checkpoint, compute, calibration);
  const uint64_t chunk = estimate.parts.back().bytes;
  estimate.parts.pop_back();
  // The weights are rotated in fp32, beside the copy that the forward uses.
  if (compute.dtype != at::kFloat)
    estimate.parts.push_back({"layer_weights_fp32", u64(layer_bytes(config, at::kFloat))});
  if (refits) estimate.parts.push_back({"dense_layer", u64(layer_bytes(config, compute.dtype))});
  // While chunks pass: bases of both sides, the ways between them, and the moment that is collected. Then, without
  // chunks, the decomposition's work space and the next basis.
  const uint64_t passing = chunk + u64(5 * square) + refit_bytes(config, refits);
  estimate.parts.push_back({"moments_and_chunks", std::max(passing, u64(8 * square))});
  std::vector<MemoryPart> vocabulary = embedding_parts(config, compute);
  const int64_t block = std::min(config.vocab_size, kVocabularyBlock) * d;
  vocabulary.push_back({"moments_and_rotated_block", u64(2 * block * 4 + 4 * square)});
  estimate.parts = larger(std::move(estimate.parts), std::move(vocabulary));
  estimate.stream_bytes = u64((refits ? 2 : 1) * stream_bytes(config, calibration) + stream_bytes(config, held_out));
  estimate.output_bytes = output_bytes;

  const TextAmount both{calibration.windows + held_out.windows, calibration.length};
  estimate.work.forward_flops = attention_flops(config, both);
  estimate.work.bytes_read = static_cast<double>(stored_bytes(checkpoint));
  const double dd = static_cast<double>(d) * static_cast<double>(d);
  for (const LayerShape& shape : (sliced != nullptr ? *sliced : config).layers) {
    add_slicing(estimate.work, config, shape, sliced != nullptr, both.tokens());
  }
  if (sliced != nullptr) {
    const double whole = 2.0 * static_cast<double>(config.vocab_size) * static_cast<double>(d);
    if (!sliced->has_embedding_rotation)
      estimate.work.rotation_flops += whole * static_cast<double>(sliced->embedding_width);
    if (!sliced->tie_word_embeddings) estimate.work.rotation_flops += whole * static_cast<double>(sliced->head_width);
  }
  // Upper halves only.
  estimate.work.moment_flops = (2 * layers + 1) * 2 * 0.58 * dd * static_cast<double>(calibration.tokens());
  estimate.work.eigen_cubes = (2 * layers + 1) * dd * static_cast<double>(d);
  if (refits) {
    estimate.work += walking_work(checkpoint, calibration, 1);  // of the dense stream
    add_refits(estimate.work, config, calibration);
  }
  return estimate;
}

// What the loss says of the layers, for as long as it is kept: G inside and behind all of them.
MemoryPart gradient_directions(const ModelConfig& config, TextAmount gradients) {
  const int64_t square = config.hidden_size * config.hidden_size;
  return {"gradient_directions", u64(gradients.windows > 0 ? 2 * config.num_layers() * square * 4 : 0)};
}

ResourceEstimate estimate_sensitivity(const Checkpoint& checkpoint, const ComputeOptions& compute,
                                      TextAmount gradients) {
  const ModelConfig& config = checkpoint.config();
  ResourceEstimate estimate;
  estimate.parts = walking_parts(checkpoint, compute, gradients);
  estimate.parts.push_back({"output_matrix", u64(config.vocab_size * config.hidden_size * item(compute.dtype))});
  estimate.parts.push_back(gradient_directions(config, gradients));
  estimate.parts.push_back({"activations", u64(largest_of_layers(config, [&](const LayerShape& shape) {
                              return 2 * activation_bytes(shape, config.head_dim, compute.dtype, gradients.length);
                            }))});
  const int64_t a_window = (config.num_layers() + 1) * stream_bytes(config, {1, gradients.length});
  estimate.stream_bytes =
      u64(std::min(gradients.windows * a_window, std::max(default_turn_bytes(checkpoint, compute.device), a_window)));
  estimate.work = walking_work(checkpoint, gradients, 2);
  estimate.work.forward_flops *= 3;
  return estimate;
}

ResourceEstimate estimate_slice_globally(const Checkpoint& checkpoint, const ComputeOptions& compute,
                                         const GlobalUse& use) {
  const ModelConfig& config = checkpoint.config();
  const int64_t d = config.hidden_size, square = d * d * 8, layers = config.num_layers();
  const MemoryPart directions = gradient_directions(config, use.gradients);
  ResourceEstimate estimate;
  estimate.parts = walking_parts(checkpoint, compute, use.calibration);
  // The dense layer and the sliced one, in fp32 and as the forward has them.
  const bool converts = compute.dtype != at::kFloat;
  if (converts) estimate.parts.push_back({"layer_weights_fp32", u64(layer_bytes(config, at::kFloat))});
  estimate.parts.push_back(
      {"sliced_layer", u64(layer_bytes(config, at::kFloat) + (converts ? layer_bytes(config, compute.dtype) : 0))});
  estimate.parts.push_back({"moments", std::max(u64(8 * square), refit_bytes(config, use.refits) + u64(2 * square))});
  estimate.parts.push_back(directions);
  std::vector<MemoryPart> vocabulary = embedding_parts(config, compute);
  const int64_t block = std::min(config.vocab_size, kVocabularyBlock) * d;
  vocabulary.push_back({"moments_and_rotated_block", u64(2 * block * 4 + 4 * square) + directions.bytes});
  estimate.parts = larger(std::move(estimate.parts), std::move(vocabulary));
  estimate.stream_bytes = u64((use.refits ? 2 : 1) * stream_bytes(config, use.calibration));
  estimate.output_bytes = use.output_bytes;

  estimate.work = walking_work(checkpoint, use.calibration, 2);
  if (use.refits) {  // the dense model once more, and the sliced one
    estimate.work.forward_flops *= 3;
    add_refits(estimate.work, config, use.calibration);
  }
  const double dd = static_cast<double>(d) * static_cast<double>(d),
               tokens = static_cast<double>(use.calibration.tokens());
  estimate.work.moment_flops = static_cast<double>(2 * layers + 1) * 2 * 0.58 * dd * tokens;
  estimate.work.eigen_cubes = 2 * dd * static_cast<double>(d);
  for (const LayerShape& shape : config.layers) {
    estimate.work.rotation_flops += 2.0 * static_cast<double>(layer_parameters(config, shape)) * static_cast<double>(d);
  }
  return use.gradients.windows > 0 ? estimate_sensitivity(checkpoint, compute, use.gradients) + estimate : estimate;
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

ResourceEstimate estimate_modular(const Checkpoint& checkpoint, const ComputeOptions& compute, const ModularUse& use) {
  const ModelConfig& config = checkpoint.config();
  const int64_t d = config.hidden_size;
  const int64_t n = largest_of_layers(config, [](const LayerShape& shape) { return shape.intermediate_size; });
  const int64_t q =
      largest_of_layers(config, [&](const LayerShape& shape) { return shape.num_attention_heads * config.head_dim; });
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
  return use.gradients.windows > 0 ? estimate_sensitivity(checkpoint, compute, use.gradients) + estimate : estimate;
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
    return shape.num_attention_heads * config.head_dim * item(compute.dtype);
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
  cache *= use.batch * (use.prompt_tokens + use.decode_tokens) * (compute.device.is_cpu() ? 4 : item(compute.dtype));
  const int64_t weights = count_cost(config).parameters * item(compute.dtype);
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
  ResourceEstimate estimate;
  // Parameters, gradients, two moments and the best ones so far. Rows of logits, their exponentials and gradients.
  estimate.parts = {program_part(compute.device),
                    {"weights", u64((weights + head + embedding) * item(compute.dtype))},
                    {"trained_parameters", u64(5 * 4 * use.parameters + 4 * use.kept_parameters)},
                    {"activations", u64(activations + (use.recomputes ? largest : 0))},
                    {"temporary_activations", u64(3 * largest)},
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
  const int64_t size = item(dtype), heads = shape.num_attention_heads * head_dim;
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
