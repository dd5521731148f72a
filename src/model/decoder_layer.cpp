#include "dynslice/model/decoder_layer.h"

#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <optional>

#include "aten.h"
#include "dynslice/model/rope.h"
#include "dynslice/support/error.h"
#include "dynslice/tensor/attention_kernel.h"
#include "dynslice/tensor/decode_kernels.h"
#include "dynslice/tensor/kernels.h"

namespace dynslice {
namespace {

// Values of a packed matrix that are loaded at once.
constexpr int64_t kLoadBlockValues = int64_t{1} << 22;

// Loads one layer's tensors by their names.
class LayerLoader {
 public:
  LayerLoader(const Checkpoint& checkpoint, int64_t index, at::ScalarType dtype, at::Device device)
      : checkpoint_(checkpoint), index_(index), dtype_(dtype), device_(device) {}

  at::Tensor tensor(const std::string& suffix, const std::vector<int64_t>& shape, at::ScalarType dtype) const {
    return checkpoint_.load(layer_tensor_name(index_, suffix), shape, dtype).to(device_);
  }

  Shortcut shortcut(const std::string& module, const ShortcutShape& shape, int64_t in, int64_t out) const {
    Shortcut result;
    result.kind = shape.kind;
    if (shape.kind == ShortcutKind::kMatrix) result.weight = tensor(module + ".weight", {out, in}, at::kFloat);
    if (shape.rank == 0) return result;
    result.down = tensor(module + ".down.weight", {shape.rank, in}, dtype_);
    result.up = shape.kind == ShortcutKind::kSymmetric ? result.down.t().neg().contiguous()
                                                       : tensor(module + ".up.weight", {out, shape.rank}, dtype_);
    return result;
  }

  // Several linears of the same input as one, rows one after the other. They are read in blocks into their places, so
  // that no second copy of them is ever in memory.
  Linear packed(const std::vector<MatrixPart>& linears, bool bias) const {
    const int64_t in = linears.front().columns;
    int64_t rows = 0;
    for (const MatrixPart& one : linears) rows += one.rows;
    const auto options = at::TensorOptions().dtype(dtype_).device(device_);
    const at::Tensor weight = at::empty({rows, in}, options);
    std::vector<at::Tensor> biases;
    for (const MatrixPart& one : linears) {
      const int64_t out = one.rows;
      const std::string module(one.part->module), name = layer_tensor_name(index_, module + ".weight");
      const int64_t step = std::max<int64_t>(1, kLoadBlockValues / in);
      for (int64_t row = 0; row < out; row += step) {
        const int64_t count = std::min(step, out - row);
        weight.narrow(0, one.first_row + row, count)
            .copy_(checkpoint_.load_rows(name, {out, in}, row, row + count, dtype_));
      }
      if (bias) biases.push_back(tensor(module + ".bias", {out}, dtype_));
    }
    return {weight, bias ? at::cat(biases) : at::Tensor()};
  }

 private:
  const Checkpoint& checkpoint_;
  int64_t index_;
  at::ScalarType dtype_;
  at::Device device_;
};

// Positions that queries first ... first + length - 1 may not see: later ones, and those `window` or more before
// them. Additive, [length, first + length].
at::Tensor attention_mask(int64_t first, int64_t length, int64_t window, at::Device device) {
  const auto options = at::TensorOptions().dtype(at::kLong).device(device);
  const at::Tensor query = at::arange(first, first + length, options).view({length, 1});
  const at::Tensor key = at::arange(first + length, options).view({1, first + length});
  const at::Tensor hidden = key.gt(query).logical_or_(key.le(query - window));
  return at::zeros({length, first + length}, options.dtype(at::kFloat)).masked_fill_(hidden, -INFINITY);
}

// Keys or values for every query head. Of CUDA's kernels that never hold all scores of a window, only the one for
// half-precision numbers and no mask shares a key among queries by itself.
at::Tensor spread(const at::Tensor& shared, const at::Tensor& q) {
  const int64_t kv = shared.size(1), group = q.size(1) / kv;
  return shared.unsqueeze(2).expand({-1, -1, group, -1, -1}).flatten(1, 2);
}

at::Tensor attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& mask,
                  bool is_causal) {
  if (q.is_cpu() && q.scalar_type() == at::kBFloat16) {  // LibTorch's attention is slow in bf16 there
    return attend(q.to(at::kFloat), k.to(at::kFloat), v.to(at::kFloat), mask, is_causal).to(at::kBFloat16);
  }
  const std::optional<at::Tensor> added = mask.defined() ? std::optional(mask.to(q.scalar_type())) : std::nullopt;
  const double scale = 1.0 / std::sqrt(static_cast<double>(q.size(3)));
  const bool grouped = q.size(1) != k.size(1);
  if (grouped && q.is_cuda() && (mask.defined() || q.scalar_type() == at::kFloat)) {
    return at::scaled_dot_product_attention(q, spread(k, q), spread(v, q), added, 0.0, is_causal, scale);
  }
  return at::scaled_dot_product_attention(q, k, v, added, 0.0, is_causal, scale, grouped);
}

// `mask` is undefined for plain causal attention.
at::Tensor attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& mask) {
  return attend(q, k, v, mask, !mask.defined());
}

// Adds k, v [B, kv_heads, T, head_dim] to the cache.
void append(LayerCache& cache, const at::Tensor& k, const at::Tensor& v) {
  const int64_t length = k.size(2), end = cache.length + length;
  TORCH_CHECK(end <= cache.keys.size(2), "the cache has room for ", cache.keys.size(2), " positions, not ", end);
  cache.keys.narrow(2, cache.length, length).copy_(k);
  cache.values.narrow(2, cache.length, length).copy_(v);
  cache.length = end;
}

// Adds k, v [B, kv_heads, T, head_dim] to the cache, and attends over all it holds. Returns [B, H, T, head_dim].
at::Tensor attend_cached(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, bool is_sliding,
                         const LayerContext& context, LayerCache& cache) {
  const int64_t length = k.size(2), end = cache.length + length;
  const bool is_first = cache.length == 0;
  append(cache, k, v);
  const int64_t window = is_sliding && context.sliding_window > 0 ? context.sliding_window : end;
  const int64_t begin = length == 1 ? std::max<int64_t>(0, end - window) : 0;
  if (length == 1 && q.device().is_cpu()) {
    const at::Tensor attended = kernels::attend_one(q.to(at::kFloat), cache.keys, cache.values, begin, end);
    return attended.view({q.size(0), q.size(1), 1, q.size(3)});
  }
  const at::Tensor mask = is_sliding && context.sliding_mask.defined() ? context.sliding_mask : context.causal_mask;
  if (is_first && length > 1) return attend(q, k, v, mask);
  const auto seen = [&](const at::Tensor& cached) { return cached.narrow(2, begin, end - begin).to(q.scalar_type()); };
  if (length > 1) return attend(q, seen(cache.keys), seen(cache.values), mask);
  // One query sees all keys, and so do those of the other heads that share them: they are as good as further tokens.
  const int64_t kv = k.size(1), group = q.size(1) / kv;
  return attend(q.reshape({q.size(0), kv, group, q.size(3)}), seen(cache.keys), seen(cache.values), {},
                /*is_causal=*/false)
      .reshape(q.sizes());
}

// From queries, keys and values [B, T, (H + 2 kv_heads) * head_dim], side by side, to the heads' outputs
// [B, T, H * head_dim]; `cache` is null for windows that stand alone.
at::Tensor mix_tokens(const DecoderLayer& layer, const LayerContext& context, const at::Tensor& packed,
                      LayerCache* cache) {
  const int64_t batch = packed.size(0), length = packed.size(1);
  const int64_t heads = layer.shape.num_attention_heads, kv = layer.shape.num_key_value_heads;
  at::Tensor qkv = packed.view({batch, length, heads + 2 * kv, context.head_dim});
  norm_heads_(layer, context, qkv);
  kernels::apply_rope_(qkv, heads + kv, context.cos, context.sin);
  const auto head_major = [&](int64_t first, int64_t count) { return qkv.narrow(2, first, count).transpose(1, 2); };
  const at::Tensor q = head_major(0, heads), k = head_major(heads, kv), v = head_major(heads + kv, kv);
  const bool stands_alone = cache == nullptr || (cache->length == 0 && length > 1);
  if (stands_alone && kernels::causal_attention_applies(qkv)) {
    if (cache != nullptr) append(*cache, k, v);
    return kernels::causal_attention(qkv, heads, kv, layer.is_sliding ? context.sliding_window : 0);
  }
  const at::Tensor attended = cache != nullptr
                                  ? attend_cached(q, k, v, layer.is_sliding, context, *cache)
                                  : attend(q, k, v, layer.is_sliding ? context.sliding_mask : at::Tensor());
  return attended.transpose(1, 2).reshape({batch, length, heads * context.head_dim});
}

at::Tensor run_attention(const DecoderLayer& layer, const LayerContext& context, const at::Tensor& x,
                         LayerCache* cache) {
  const at::Tensor qkv = kernels::linear(attention_input(layer, context, x), layer.qkv.weight, layer.qkv.bias);
  return kernels::linear(mix_tokens(layer, context, qkv, cache), layer.o_proj.weight, layer.o_proj.bias);
}

// Half a layer, its residual path included, for few tokens: two sweeps over its weights, those that read the stream and
// those that write it.
template <typename Inner>
at::Tensor forward_few_rows(const Linear& reads, const Linear& writes, const at::Tensor& norm, const Shortcut& shortcut,
                            const LayerContext& context, const at::Tensor& x, Inner inner) {
  const at::Tensor normed = kernels::rms_norm(x, norm, context.hidden_size, context.rms_norm_eps, at::kFloat);
  std::vector<kernels::FewRowsSum> first{{normed, reads.weight, reads.bias}};
  if (shortcut.down.defined()) first.push_back({x, shortcut.down});
  const std::vector<at::Tensor> read = kernels::sums_of_few_rows(std::move(first));
  kernels::FewRowsSum written{inner(read.front()), writes.weight, writes.bias};
  if (shortcut.kind == ShortcutKind::kMatrix) {
    written.more_x = x;
    written.more_weight = shortcut.weight;
  } else {
    written.passed = x;
    if (shortcut.kind == ShortcutKind::kSymmetric && shortcut.down.defined()) {
      written.less_x = read.back();
      written.less_weight = shortcut.down;  // still in the cache; a copy of it, transposed, would not be
    } else if (shortcut.down.defined()) {
      written.more_x = read.back();
      written.more_weight = shortcut.up;
    }
  }
  return kernels::sums_of_few_rows({std::move(written)}).front();
}

// What the MLP multiplies by its last matrix.
at::Tensor activated(const DecoderLayer& layer, const at::Tensor& read) {
  return layer.shape.is_gated ? kernels::silu_mul(read) : at::silu(read);
}

// In place: a loaded layer is its weights' only owner, and another fp32 copy would be the largest thing in memory.
void scale_columns(at::Tensor& weight, const at::Tensor& scale) {
  if (weight.scalar_type() == at::kFloat) {
    weight.mul_(scale.view({1, -1}));
  } else {
    weight = (weight.to(at::kFloat) * scale.view({1, -1})).to(weight.scalar_type());
  }
}

}  // namespace

LayerContext make_position_context(const ModelConfig& config, int64_t positions, at::Device device) {
  const std::vector<float> frequencies = inverse_frequencies(config.rope, config.head_dim);
  const at::Tensor frequency = at::tensor(frequencies, at::kFloat);
  const at::Tensor position = at::arange(positions, at::kFloat);
  const at::Tensor angle = position.view({-1, 1}) * frequency.view({1, -1});
  LayerContext context;
  context.hidden_size = config.hidden_size;
  context.head_dim = config.head_dim;
  context.rms_norm_eps = config.rms_norm_eps;
  context.cos = angle.cos().to(device);
  context.sin = angle.sin().to(device);
  context.sliding_window = config.sliding_window.value_or(0);
  return context;
}

LayerContext make_layer_context(const ModelConfig& config, int64_t window_length, at::Device device) {
  // A walk makes it once, and may take gradients later: autograd refuses to save tensors of inference mode.
  const c10::InferenceMode may_be_saved_for_backward(false);
  const c10::NoGradGuard no_gradients;
  LayerContext context = make_position_context(config, window_length, device);
  if (config.sliding_window.value_or(window_length) < window_length) {
    context.sliding_mask = attention_mask(0, window_length, *config.sliding_window, device);
  }
  return context;
}

LayerContext continued_context(const LayerContext& positions, int64_t first, int64_t length) {
  LayerContext context = positions;
  const int64_t end = first + length;
  context.cos = positions.cos.narrow(0, first, length);
  context.sin = positions.sin.narrow(0, first, length);
  context.sliding_mask.reset();
  if (length == 1) return context;  // the cached range alone says what is seen
  const at::Device device = positions.cos.device();
  if (first > 0) context.causal_mask = attention_mask(first, length, end, device);
  if (context.sliding_window > 0 && context.sliding_window < end) {
    context.sliding_mask = attention_mask(first, length, context.sliding_window, device);
  }
  return context;
}

at::Tensor DecoderLayer::* norm_member(Role role) {
  switch (role) {
    case Role::kAttentionNorm:
      return &DecoderLayer::input_norm;
    case Role::kQueryNorm:
      return &DecoderLayer::query_norm;
    case Role::kKeyNorm:
      return &DecoderLayer::key_norm;
    case Role::kMlpNorm:
      return &DecoderLayer::post_attention_norm;
    default:
      return nullptr;
  }
}

Linear DecoderLayer::* matrix_member(Role role) {
  switch (role) {
    case Role::kQuery:
    case Role::kKey:
    case Role::kValue:
      return &DecoderLayer::qkv;
    case Role::kOutput:
      return &DecoderLayer::o_proj;
    case Role::kGate:
    case Role::kUp:
      return &DecoderLayer::gate_up;
    case Role::kDown:
      return &DecoderLayer::down_proj;
    default:
      return nullptr;
  }
}

std::vector<MatrixPart> matrix_parts(const LayerShape& shape, int64_t head_dim) {
  std::vector<MatrixPart> parts;
  for (const LayerPart& part : layer_parts()) {
    if (!part.is_linear() || !part.is_in(shape)) continue;
    MatrixPart one{&part, matrix_member(part.role), 0, part.rows(shape, head_dim), part.columns(shape, head_dim)};
    if (!parts.empty() && parts.back().matrix == one.matrix) one.first_row = parts.back().first_row + parts.back().rows;
    parts.push_back(one);
  }
  return parts;
}

std::vector<Linear DecoderLayer::*> matrices_of(const LayerShape& shape) {
  std::vector<Linear DecoderLayer::*> matrices;
  for (const LayerPart& part : layer_parts()) {
    Linear DecoderLayer::* const matrix = matrix_member(part.role);
    if (matrix == nullptr || !part.is_in(shape)) continue;
    if (matrices.empty() || matrices.back() != matrix) matrices.push_back(matrix);
  }
  return matrices;
}

void remove_attention(DecoderLayer& layer) {
  for (const LayerPart& part : layer_parts()) {
    if (part.half != Half::kAttention) continue;
    if (part.is_linear()) {
      layer.*matrix_member(part.role) = {};
    } else {
      (layer.*norm_member(part.role)).reset();
    }
  }
}

std::vector<at::Tensor*> tensors_of(DecoderLayer& layer) {
  std::vector<at::Tensor*> tensors;
  Linear* last = nullptr;
  for (const LayerPart& part : layer_parts()) {
    if (!part.is_linear()) {
      tensors.push_back(&(layer.*norm_member(part.role)));
    } else if (Linear* linear = &(layer.*matrix_member(part.role)); linear != last) {
      tensors.insert(tensors.end(), {&linear->weight, &linear->bias});
      last = linear;
    }
  }
  return tensors;
}

std::string layer_tensor_name(int64_t index, const std::string& suffix) {
  return "model.layers." + std::to_string(index) + "." + suffix;
}

DecoderLayer load_decoder_layer(const Checkpoint& checkpoint, int64_t index, at::ScalarType dtype, at::Device device) {
  const ModelConfig& config = checkpoint.config();
  const LayerShape& shape = config.layers.at(static_cast<size_t>(index));
  const LayerLoader loader(checkpoint, index, dtype, device);
  DecoderLayer layer;
  layer.shape = shape;
  layer.is_sliding = config.sliding_window.has_value() &&
                     (config.layer_is_sliding.empty() || config.layer_is_sliding.at(static_cast<size_t>(index)));
  for (const LayerPart& part : layer_parts()) {
    if (part.is_linear() || !part.is_in(shape)) continue;
    layer.*norm_member(part.role) =
        loader.tensor(std::string(part.module) + ".weight", {part.rows(shape, config.head_dim)}, at::kFloat);
  }
  const std::vector<MatrixPart> linears = matrix_parts(shape, config.head_dim);
  for (Linear DecoderLayer::* matrix : matrices_of(shape)) {
    std::vector<MatrixPart> rows;
    std::ranges::copy_if(linears, std::back_inserter(rows),
                         [&](const MatrixPart& one) { return one.matrix == matrix; });
    layer.*matrix = loader.packed(rows, rows.front().part->has_bias(config));
  }
  layer.attn_shortcut = loader.shortcut("attn_shortcut", shape.attn_shortcut, shape.input_width, shape.middle_width);
  layer.mlp_shortcut = loader.shortcut("mlp_shortcut", shape.mlp_shortcut, shape.middle_width, shape.output_width);
  return layer;
}

DecoderLayer with_dtype(DecoderLayer layer, at::ScalarType dtype) {
  for (Linear DecoderLayer::* matrix : matrices_of(layer.shape)) {
    Linear& linear = layer.*matrix;
    if (!linear.weight.defined()) continue;
    linear.weight = linear.weight.to(dtype);
    if (linear.bias.defined()) linear.bias = linear.bias.to(dtype);
  }
  return layer;
}

void fold_norms(DecoderLayer& layer) {
  if (layer.input_norm.defined()) scale_columns(layer.qkv.weight, layer.input_norm);
  if (layer.post_attention_norm.defined()) scale_columns(layer.gate_up.weight, layer.post_attention_norm);
  layer.input_norm.reset();
  layer.post_attention_norm.reset();
  layer.shape.has_norm_weights = false;
}

std::vector<std::pair<std::string, at::Tensor>> layer_tensors(const DecoderLayer& layer, int64_t head_dim) {
  std::vector<std::pair<std::string, at::Tensor>> tensors;
  const auto tensor = [&](const std::string& suffix, const at::Tensor& values) {
    if (values.defined()) tensors.emplace_back(suffix, values);
  };
  const auto shortcut = [&](const Shortcut& residual, const std::string& module) {
    tensor(module + ".weight", residual.weight);
    tensor(module + ".down.weight", residual.down);
    if (residual.kind == ShortcutKind::kLowRank) tensor(module + ".up.weight", residual.up);
  };
  const std::vector<MatrixPart> linears = matrix_parts(layer.shape, head_dim);
  for (const LayerPart& part : layer_parts()) {
    const std::string module(part.module);
    if (!part.is_linear()) tensor(module + ".weight", layer.*norm_member(part.role));
    const auto one = std::ranges::find(linears, &part, &MatrixPart::part);
    if (one == linears.end()) continue;
    const Linear& linear = layer.*one->matrix;
    // What writes to the stream is alone in its matrix, whose rows may have been sliced since the shape was read.
    const int64_t rows = part.side == PartSide::kWrites ? linear.weight.size(0) : one->rows;
    tensor(module + ".weight", linear.weight.narrow(0, one->first_row, rows));
    if (linear.bias.defined()) tensor(module + ".bias", linear.bias.narrow(0, one->first_row, rows));
  }
  shortcut(layer.attn_shortcut, "attn_shortcut");
  shortcut(layer.mlp_shortcut, "mlp_shortcut");
  return tensors;
}

at::Tensor attention_input(const DecoderLayer& layer, const LayerContext& context, const at::Tensor& x) {
  return kernels::rms_norm(x, layer.input_norm, context.hidden_size, context.rms_norm_eps,
                           layer.qkv.weight.scalar_type());
}

void norm_heads_(const DecoderLayer& layer, const LayerContext& context, at::Tensor& qkv) {
  const int64_t heads = layer.shape.num_attention_heads, dim = qkv.dim() - 2;
  const auto norm = [&](const at::Tensor& weight, int64_t first, int64_t count) {
    if (!weight.defined()) return;
    at::Tensor part = qkv.narrow(dim, first, count);
    part.copy_(kernels::rms_norm(part.contiguous(), weight, context.head_dim, context.rms_norm_eps, qkv.scalar_type()));
  };
  norm(layer.query_norm, 0, heads);
  norm(layer.key_norm, heads, layer.shape.num_key_value_heads);
}

at::Tensor attention_inner(const DecoderLayer& layer, const LayerContext& context, const at::Tensor& x) {
  const at::Tensor qkv = kernels::linear(attention_input(layer, context, x), layer.qkv.weight, layer.qkv.bias);
  return mix_tokens(layer, context, qkv, nullptr);
}

at::Tensor mlp_input(const DecoderLayer& layer, const LayerContext& context, const at::Tensor& x) {
  return kernels::rms_norm(x, layer.post_attention_norm, context.hidden_size, context.rms_norm_eps,
                           layer.gate_up.weight.scalar_type());
}

at::Tensor mlp_inner(const DecoderLayer& layer, const LayerContext& context, const at::Tensor& x) {
  return activated(layer, kernels::linear(mlp_input(layer, context, x), layer.gate_up.weight, layer.gate_up.bias));
}

at::Tensor attention_branch(const DecoderLayer& layer, const LayerContext& context, const at::Tensor& x) {
  return run_attention(layer, context, x, nullptr);
}

at::Tensor mlp_branch(const DecoderLayer& layer, const LayerContext& context, const at::Tensor& x) {
  return kernels::linear(mlp_inner(layer, context, x), layer.down_proj.weight, layer.down_proj.bias);
}

at::Tensor pass(const Shortcut& shortcut, const at::Tensor& x, int64_t out) {
  if (shortcut.kind == ShortcutKind::kMatrix) return kernels::linear(x, shortcut.weight, {});
  if (shortcut.kind == ShortcutKind::kIdentity && x.size(-1) == out) return x;
  auto sizes = x.sizes().vec();
  sizes.back() = out;
  return add_residual(at::zeros(sizes, x.options()), x, shortcut);
}

at::Tensor add_residual(at::Tensor branch, const at::Tensor& x, const Shortcut& shortcut) {
  if (shortcut.kind == ShortcutKind::kMatrix) {
    return kernels::add_fitted(branch, kernels::linear(x, shortcut.weight, {}), {});
  }
  at::Tensor correction;
  if (shortcut.down.defined()) correction = kernels::linear(kernels::linear(x, shortcut.down, {}), shortcut.up, {});
  if (correction.defined() && correction.scalar_type() != branch.scalar_type()) correction = correction.to(at::kFloat);
  return kernels::add_fitted(branch, x, correction);
}

at::Tensor forward_attention(const DecoderLayer& layer, const LayerContext& context, const at::Tensor& x) {
  if (!layer.shape.has_attention()) return x;
  return add_residual(attention_branch(layer, context, x), x, layer.attn_shortcut);
}

at::Tensor forward_attention(const DecoderLayer& layer, const LayerContext& context, const at::Tensor& x,
                             LayerCache& cache) {
  if (!layer.shape.has_attention()) return x;
  if (kernels::few_rows_apply(x, layer.qkv.weight)) {
    return forward_few_rows(layer.qkv, layer.o_proj, layer.input_norm, layer.attn_shortcut, context, x,
                            [&](const at::Tensor& qkv) { return mix_tokens(layer, context, qkv, &cache); });
  }
  return add_residual(run_attention(layer, context, x, &cache), x, layer.attn_shortcut);
}

at::Tensor forward_mlp(const DecoderLayer& layer, const LayerContext& context, const at::Tensor& x) {
  if (kernels::few_rows_apply(x, layer.gate_up.weight)) {
    return forward_few_rows(layer.gate_up, layer.down_proj, layer.post_attention_norm, layer.mlp_shortcut, context, x,
                            [&](const at::Tensor& gate_up) { return activated(layer, gate_up); });
  }
  return add_residual(mlp_branch(layer, context, x), x, layer.mlp_shortcut);
}

}  // namespace dynslice
