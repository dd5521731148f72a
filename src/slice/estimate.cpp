#include "dynslice/slice/estimate.h"

#include <algorithm>

#include "dynslice/tensor/blocks.h"
#include "dynslice/train/estimate.h"
#include "dynslice/walk/walk_estimate.h"

namespace dynslice {
namespace {

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
    return std::max(shape.intermediate_size, shape.num_attention_heads * shape.head_dim);
  });
  return refits ? u64(5 * n * n * 4 + 4 * n * d * 8 + d * d * 8) : 0;
}

// Refits of all matrices: moments and least squares of what readers read and writers write, and the forward in front of
// the writers once more.
void add_refits(Work& work, const ModelConfig& config, TextAmount text) {
  const auto d = static_cast<double>(config.hidden_size), tokens = static_cast<double>(text.tokens());
  work.forward_flops += attention_flops(config, text);
  for (const LayerShape& shape : config.layers) {
    work.forward_flops += 2 * 0.9 * static_cast<double>(layer_parameters(shape)) * tokens;
    work.moment_flops += 2 * 2 * 1.58 * d * d * tokens;
    for (const int64_t inside : {shape.num_attention_heads * shape.head_dim, shape.intermediate_size}) {
      const auto inner = static_cast<double>(inside);
      work.moment_flops += 2 * inner * (0.58 * inner + d) * tokens;
      work.rotation_flops += 3 * inner * inner * inner;
    }
  }
}

// One layer sliced to `shape`: its linears read sliced streams and write whole ones, which then are turned. Of a shape
// that nobody knows yet, a turn is taken to be half a matrix.
void add_slicing(Work& work, const ModelConfig& config, const LayerShape& shape, bool is_known, int64_t tokens) {
  const int64_t d = config.hidden_size, q = shape.num_attention_heads * shape.head_dim;
  const int64_t kv = shape.num_key_value_heads * shape.head_dim;
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

ResourceEstimate estimate_slice(const Checkpoint& checkpoint, const ComputeOptions& compute, const SliceUse& use) {
  const ModelConfig& config = checkpoint.config();
  const auto& [calibration, held_out, gradients, refits, sliced, output_bytes] = use;
  const int64_t d = config.hidden_size, square = d * d * 8;
  const double layers = static_cast<double>(config.num_layers());
  ResourceEstimate estimate;
  estimate.parts = walking_parts(checkpoint, compute, calibration);
  const uint64_t chunk = estimate.parts.back().bytes;
  estimate.parts.pop_back();
  const MemoryPart directions = gradient_directions(config, gradients);
  estimate.parts.push_back(directions);
  // The weights are rotated in fp32, beside the copy that the forward uses.
  if (compute.dtype != at::kFloat)
    estimate.parts.push_back({"layer_weights_fp32", u64(layer_bytes(config, at::kFloat))});
  // While chunks pass: bases of both sides, the ways between them, and the moment that is collected. Then, without
  // chunks, the decomposition's work space and the next basis.
  const uint64_t passing = chunk + u64(5 * square) + refit_bytes(config, refits);
  estimate.parts.push_back({"moments_and_chunks", std::max(passing, u64(8 * square))});
  std::vector<MemoryPart> vocabulary = embedding_parts(config, compute);
  const int64_t block = std::min(config.vocab_size, kVocabularyBlock) * d;
  vocabulary.push_back({"moments_and_rotated_block", u64(2 * block * 4 + 4 * square) + directions.bytes});
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
  if (use.refits) estimate.work.forward_flops *= 3;  // the dense model once more, and the sliced one
  const double dd = static_cast<double>(d) * static_cast<double>(d),
               tokens = static_cast<double>(use.calibration.tokens());
  estimate.work.moment_flops = static_cast<double>(2 * layers + 1) * 2 * 0.58 * dd * tokens;
  estimate.work.eigen_cubes = 2 * dd * static_cast<double>(d);
  for (const LayerShape& shape : config.layers) {
    estimate.work.rotation_flops += 2.0 * static_cast<double>(layer_parameters(shape)) * static_cast<double>(d);
  }
  if (use.refits) add_refits(estimate.work, config, use.calibration);
  return estimate;
}

}  // namespace dynslice
