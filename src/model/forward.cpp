#include "dynslice/model/forward.h"

#include <ATen/ops/softplus.h>
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>

#include <cmath>
#include <optional>
#include <utility>
#include <vector>

#include "aten.h"
#include "dynslice/model/rope.h"
#include "dynslice/support/check.h"
#include "dynslice/tensor/attention_kernel.h"
#include "dynslice/tensor/capped_attention.h"
#include "dynslice/tensor/decode_kernels.h"
#include "dynslice/tensor/delta_net.h"
#include "dynslice/tensor/kernels.h"

namespace dynslice {
namespace {

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
  DYNSLICE_CHECK(end <= cache.keys.size(2), "the cache has room for ", cache.keys.size(2), " positions, not ", end);
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
    const at::Tensor attended =
        kernels::attend_one(q.to(at::kFloat), cache.keys, cache.values, begin, end, context.score_cap);
    return attended.view({q.size(0), q.size(1), 1, q.size(3)});
  }
  if (context.score_cap != 0) {
    const auto whole = [&](const at::Tensor& cached) { return cached.narrow(2, 0, end).to(q.scalar_type()); };
    return kernels::capped_attention(q, whole(cache.keys), whole(cache.values), window, context.score_cap);
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
at::Tensor mix_heads(const DecoderLayer& layer, const LayerContext& context, const at::Tensor& packed,
                     LayerCache* cache) {
  const int64_t batch = packed.size(0), length = packed.size(1), head_dim = layer.shape.head_dim;
  const int64_t heads = layer.shape.num_attention_heads, kv = layer.shape.num_key_value_heads;
  at::Tensor qkv = with_values(layer.shape, packed).view({batch, length, heads + 2 * kv, head_dim});
  place_heads_(layer, context, context.rotary_of(layer), qkv);
  const auto head_major = [&](int64_t first, int64_t count) { return qkv.narrow(2, first, count).transpose(1, 2); };
  const at::Tensor q = head_major(0, heads), k = head_major(heads, kv), v = head_major(heads + kv, kv);
  const bool stands_alone = cache == nullptr || (cache->length == 0 && length > 1);
  const int64_t window = layer.is_sliding ? context.sliding_window : 0;
  if (stands_alone && kernels::causal_attention_applies(qkv)) {
    if (cache != nullptr) append(*cache, k, v);
    return kernels::causal_attention(qkv, heads, kv, window, context.score_cap);
  }
  const auto alone = [&] {
    if (context.score_cap != 0) return kernels::capped_attention(q, k, v, window, context.score_cap);
    return attend(q, k, v, layer.is_sliding ? context.sliding_mask : at::Tensor());
  };
  const at::Tensor attended = cache != nullptr ? attend_cached(q, k, v, layer.is_sliding, context, *cache) : alone();
  return attended.transpose(1, 2).reshape({batch, length, heads * head_dim});
}

// What `o_proj` multiplies, of what `qkv` gave.
at::Tensor mix_tokens(const DecoderLayer& layer, const LayerContext& context, const at::Tensor& packed,
                      LayerCache* cache) {
  if (layer.shape.is_delta()) {
    DeltaState none;
    const bool goes_on = cache != nullptr && cache->length > 0;
    DeltaState& state = cache != nullptr ? cache->delta : none;
    if (!goes_on) state = {};
    if (cache != nullptr) cache->length += packed.size(1);
    return mix_by_delta(layer, context.rms_norm_eps, packed, state);
  }
  if (!layer.shape.has_output_gate) return mix_heads(layer, context, packed, cache);
  const GatedHeads heads = split_gates(layer.shape, packed);
  return mix_heads(layer, context, heads.qkv, cache).mul_(heads.gate);
}

// What the MLP multiplies by its last matrix.
at::Tensor activated(const DecoderLayer& layer, const LayerContext& context, const at::Tensor& read) {
  return layer.shape.is_gated ? kernels::act_mul(read, context.activation) : kernels::act(read, context.activation);
}

// The operations of half_forward.h by the library's kernels. `cache` is null for windows that stand alone.
struct KernelOps {
  const DecoderLayer& layer;
  const LayerContext& context;
  LayerCache* cache = nullptr;

  at::Tensor norm(const HalfLayer& half, const at::Tensor& x, at::ScalarType dtype) const {
    if (!layer.shape.has_input_norms) return x.to(dtype);
    const at::Tensor &weight = layer.*half.norm, &bias = layer.*half.norm_bias;
    if (bias.defined()) return kernels::layer_norm(x, weight, bias, context.rms_norm_eps, dtype);
    return kernels::rms_norm(x, weight, context.hidden_size, context.rms_norm_eps, dtype);
  }
  at::Tensor norm(const HalfLayer& half, const at::Tensor& x) const {
    return norm(half, x, (layer.*half.reads).weight.scalar_type());
  }
  at::Tensor linear(Linear DecoderLayer::* matrix, const at::Tensor& x) const {
    return kernels::linear(x, (layer.*matrix).weight, (layer.*matrix).bias);
  }
  at::Tensor mix_tokens(const at::Tensor& packed) const { return dynslice::mix_tokens(layer, context, packed, cache); }
  at::Tensor activate(const at::Tensor& read) const { return activated(layer, context, read); }
  at::Tensor behind(const HalfLayer& half, at::Tensor branch) const {
    const at::Tensor& weight = layer.*half.branch_norm;
    if (weight.defined()) {
      branch = kernels::rms_norm(branch, weight, context.hidden_size, context.rms_norm_eps, branch.scalar_type());
    }
    return layer.branch_scale == 1 ? branch : branch.mul_(layer.branch_scale);
  }
  at::Tensor add(const at::Tensor& branch, const at::Tensor& x, const HalfLayer& half) const {
    return scaled(half, layer, add_residual(branch, x, layer.*half.shortcut));
  }
};

// With the tokens mixed in another way.
struct MixingOps : KernelOps {
  const std::function<at::Tensor(const at::Tensor&)>& mix;

  at::Tensor mix_tokens(const at::Tensor& packed) const { return mix(packed); }
};

// The half layer, its residual path included, for few tokens: two sweeps over its weights, those that read the stream
// and those that write it.
at::Tensor forward_few_rows(const KernelOps& ops, const HalfLayer& half, const at::Tensor& x) {
  const Linear &reads = ops.layer.*half.reads, &writes = ops.layer.*half.writes;
  const Shortcut& shortcut = ops.layer.*half.shortcut;
  const at::Tensor normed = ops.norm(half, x, at::kFloat);
  std::vector<kernels::FewRowsSum> first{{normed, reads.weight, reads.bias}};
  if (shortcut.down.defined()) first.push_back({x, shortcut.down});
  const std::vector<at::Tensor> read = kernels::sums_of_few_rows(std::move(first));
  kernels::FewRowsSum written{half_inner_of(ops, half, read.front()), writes.weight, writes.bias};
  if ((ops.layer.*half.branch_norm).defined() || ops.layer.branch_scale != 1) {
    return ops.add(ops.behind(half, kernels::sums_of_few_rows({std::move(written)}).front()), x, half);
  }
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

at::Tensor forward_half(const KernelOps& ops, const HalfLayer& half, const at::Tensor& x) {
  if (!half.is_in(ops.layer.shape)) return x;
  return kernels::few_rows_apply(x, (ops.layer.*half.reads).weight) ? forward_few_rows(ops, half, x)
                                                                    : forward_half_by(ops, half, x);
}

// What queries and keys are multiplied by each, beyond what the kernels of attention do to their products.
double score_factor(const ModelConfig& config, const LayerShape& shape) {
  if (config.attention_scale == 0) return 1;
  return std::sqrt(config.attention_scale * std::sqrt(static_cast<double>(shape.head_dim)));
}

// The layers that slide, or the others: their heads are alike.
const LayerShape& shape_of_kind(const ModelConfig& config, bool is_sliding) {
  const LayerShape* found = config.first_that_slides(is_sliding);
  return found != nullptr ? *found : config.layers.front();
}

// Of layers of that shape, at positions 0 ... positions - 1.
RotaryTable rotary_table(const RopeConfig& rope, const ModelConfig& config, const LayerShape& shape, int64_t positions,
                         at::Device device) {
  const std::vector<float> frequencies = inverse_frequencies(rope, config.rotated_channels(shape), positions);
  const at::Tensor frequency = at::tensor(frequencies, at::kFloat);
  const at::Tensor angle = at::arange(positions, at::kFloat).view({-1, 1}) * frequency.view({1, -1});
  RotaryTable table{angle.cos().to(device), angle.sin().to(device), {}};
  const bool is_whole = config.rotated_channels(shape) == shape.head_dim;
  DYNSLICE_CHECK(is_whole || config.attention_scale == 0, "a scale of scores needs a table for all channels");
  const double factor = score_factor(config, shape) * rope.attention_factor;
  if (factor != 1) {
    table.cos.mul_(factor);
    table.sin.mul_(factor);
  }
  if (rope.query_growth != 0 && positions > rope.original_max_position_embeddings) {
    const at::Tensor turns = at::arange(positions, at::kLong).floor_divide(rope.original_max_position_embeddings);
    table.query_scale = turns.to(at::kFloat).log1p().mul_(rope.query_growth).add_(1).to(device);
  }
  return table;
}

// The norm of queries, keys or values [.., count, head_dim], of each head or of all together; without a weight, too.
void norm_heads_(const LayerContext& context, const at::Tensor& weight, bool is_whole, const at::Tensor& heads) {
  const at::Tensor values = is_whole ? heads.flatten(-2) : heads.contiguous();
  const int64_t width = values.size(-1);
  heads.copy_(kernels::rms_norm(values, weight, width, context.rms_norm_eps, heads.scalar_type()).view(heads.sizes()));
}

}  // namespace

RotaryTable at_positions(const RotaryTable& table, const at::Tensor& positions) {
  const auto rows = [&](const at::Tensor& all) { return all.defined() ? all.index_select(0, positions) : all; };
  return {rows(table.cos), rows(table.sin), rows(table.query_scale)};
}

LayerContext make_position_context(const ModelConfig& config, int64_t positions, at::Device device) {
  LayerContext context;
  context.hidden_size = config.hidden_size;
  context.rms_norm_eps = config.rms_norm_eps;
  context.rotary_is_interleaved = config.rotary_is_interleaved;
  const LayerShape &global = shape_of_kind(config, false), &sliding = shape_of_kind(config, true);
  context.rotary = rotary_table(config.rope, config, global, positions, device);
  context.sliding_rotary =
      config.sliding_rope ? rotary_table(*config.sliding_rope, config, sliding, positions, device) : context.rotary;
  if (!config.layer_is_unrotated.empty()) {
    context.unrotated = {
        at::ones_like(context.rotary.cos) * score_factor(config, global), at::zeros_like(context.rotary.sin), {}};
  }
  context.sliding_window = config.sliding_window.value_or(0);
  context.activation = config.activation;
  context.score_cap = config.score_cap;
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
  for (RotaryTable* table : {&context.rotary, &context.sliding_rotary, &context.unrotated}) {
    const auto rows = [&](const at::Tensor& all) { return all.defined() ? all.narrow(0, first, length) : all; };
    *table = {rows(table->cos), rows(table->sin), rows(table->query_scale)};
  }
  context.sliding_mask.reset();
  if (length == 1) return context;  // the cached range alone says what is seen
  const at::Device device = positions.rotary.cos.device();
  if (first > 0) context.causal_mask = attention_mask(first, length, end, device);
  if (context.sliding_window > 0 && context.sliding_window < end) {
    context.sliding_mask = attention_mask(first, length, context.sliding_window, device);
  }
  return context;
}

at::Tensor half_input(const HalfLayer& half, const DecoderLayer& layer, const LayerContext& context,
                      const at::Tensor& x) {
  return KernelOps{layer, context}.norm(half, x);
}

at::Tensor half_inner(const HalfLayer& half, const DecoderLayer& layer, const LayerContext& context,
                      const at::Tensor& x) {
  return half_inner_by(KernelOps{layer, context}, half, x);
}

at::Tensor half_branch(const HalfLayer& half, const DecoderLayer& layer, const LayerContext& context,
                       const at::Tensor& x) {
  return half_branch_by(KernelOps{layer, context}, half, x);
}

at::Tensor leave_half(const HalfLayer& half, const DecoderLayer& layer, const LayerContext& context,
                      const at::Tensor& inner, const at::Tensor& x) {
  const KernelOps ops{layer, context};
  return ops.add(ops.behind(half, ops.linear(half.writes, inner)), x, half);
}

at::Tensor forward_half(const HalfLayer& half, const DecoderLayer& layer, const LayerContext& context,
                        const at::Tensor& x, const Taps& taps) {
  const KernelOps ops{layer, context};
  if (!taps.input && !taps.inner) return forward_half(ops, half, x);
  return half.is_in(layer.shape) ? forward_half_by(ops, half, x, taps) : x;
}

at::Tensor forward_layer(const DecoderLayer& layer, const LayerContext& context, const at::Tensor& x) {
  const KernelOps ops{layer, context};
  return forward_half(ops, kMlpHalf, forward_half(ops, kAttentionHalf, x));
}

at::Tensor forward_layer(const DecoderLayer& layer, const LayerContext& context, const at::Tensor& x,
                         LayerCache& cache) {
  const KernelOps ops{layer, context, &cache};
  return forward_half(ops, kMlpHalf, forward_half(ops, kAttentionHalf, x));
}

at::Tensor forward_attention(const DecoderLayer& layer, const LayerContext& context, const at::Tensor& x,
                             const std::function<at::Tensor(const at::Tensor&)>& mix) {
  if (!kAttentionHalf.is_in(layer.shape)) return x;
  return forward_half_by(MixingOps{{layer, context}, mix}, kAttentionHalf, x);
}

void place_heads_(const DecoderLayer& layer, const LayerContext& context, const RotaryTable& rotary, at::Tensor& qkv) {
  const int64_t heads = layer.shape.num_attention_heads, kv = layer.shape.num_key_value_heads;
  const bool is_rotated_first = layer.shape.query_key_norm == QueryKeyNorm::kRotatedHead;
  const auto rotate = [&] {
    kernels::apply_rope_(qkv, heads + kv, rotary.cos, rotary.sin, context.rotary_is_interleaved);
  };
  if (is_rotated_first) rotate();
  if (layer.query_norm.defined()) {
    const bool is_whole = layer.shape.query_key_norm == QueryKeyNorm::kWhole;
    norm_heads_(context, layer.query_norm, is_whole, qkv.narrow(2, 0, heads));
    norm_heads_(context, layer.key_norm, is_whole, qkv.narrow(2, heads, kv));
  }
  if (layer.shape.has_value_norm) norm_heads_(context, {}, /*is_whole=*/false, qkv.narrow(2, heads + kv, kv));
  if (!is_rotated_first) rotate();
  if (rotary.query_scale.defined())
    qkv.narrow(2, 0, heads).mul_(rotary.query_scale.to(qkv.scalar_type()).view({-1, 1, 1}));
}

at::Tensor with_values(const LayerShape& shape, const at::Tensor& packed) {
  if (shape.has_values) return packed;
  const int64_t queries = shape.num_attention_heads * shape.head_dim;
  return at::cat({packed, packed.narrow(-1, queries, packed.size(-1) - queries)}, -1);
}

GatedHeads split_gates(const LayerShape& shape, const at::Tensor& packed) {
  const int64_t batch = packed.size(0), length = packed.size(1), width = shape.num_attention_heads * shape.head_dim;
  const at::Tensor queries =
      packed.narrow(2, 0, 2 * width).view({batch, length, shape.num_attention_heads, 2, shape.head_dim});
  const at::Tensor rest = packed.narrow(2, 2 * width, packed.size(2) - 2 * width);
  return {at::cat({queries.select(3, 0).reshape({batch, length, width}), rest}, 2),
          queries.select(3, 1).reshape({batch, length, width}).sigmoid()};
}

at::Tensor mix_by_delta(const DecoderLayer& layer, double eps, const at::Tensor& packed, DeltaState& state) {
  const DeltaShape& shape = layer.shape.delta;
  const int64_t batch = packed.size(0), length = packed.size(1), keys = shape.keys(), values = shape.values();
  int64_t first = 0;
  const auto next = [&](const at::Tensor& of, int64_t count) {
    first += count;
    return of.narrow(2, first - count, count);
  };
  const auto heads = [&](const at::Tensor& x, int64_t count) { return x.reshape({batch, length, count, -1}); };
  const at::Tensor mixed = next(packed, shape.channels()), gate = next(packed, values).to(at::kFloat);
  const at::Tensor rate = next(packed, shape.value_heads).to(at::kFloat).sigmoid();
  const at::Tensor turn = next(packed, shape.value_heads).to(at::kFloat) + layer.delta_step;
  const at::Tensor decay = at::softplus(turn) * layer.delta_rate.exp().neg();
  const at::Tensor seen =
      at::silu(kernels::causal_convolution(mixed, layer.delta_convolution, state.before, &state.before));
  first = 0;
  const at::Tensor q = heads(next(seen, keys), shape.key_heads), k = heads(next(seen, keys), shape.key_heads);
  const at::Tensor v = heads(next(seen, values), shape.value_heads);
  const at::Tensor read = kernels::gated_delta_rule({q, k, v, decay, rate}, state.memory);
  const at::Tensor scale = at::rsqrt((read * read).mean(-1, /*keepdim=*/true) + eps);
  const at::Tensor normed = read * scale * layer.delta_norm * heads(at::silu(gate), shape.value_heads);
  return normed.reshape({batch, length, values}).to(packed.scalar_type());
}

at::Tensor pass(const Shortcut& shortcut, const at::Tensor& x, int64_t out) {
  if (shortcut.kind == ShortcutKind::kMatrix) return kernels::linear(x, shortcut.weight, {});
  if (shortcut.kind == ShortcutKind::kIdentity && x.size(-1) == out) return x;
  auto sizes = x.sizes().vec();
  sizes.back() = out;
  return add_residual(at::zeros(sizes, x.options()), x, shortcut);
}

at::Tensor add_residual(const at::Tensor& branch, const at::Tensor& x, const Shortcut& shortcut) {
  if (shortcut.kind == ShortcutKind::kMatrix) {
    return kernels::add_fitted(branch, kernels::linear(x, shortcut.weight, {}), {});
  }
  at::Tensor correction;
  if (shortcut.down.defined()) correction = kernels::linear(kernels::linear(x, shortcut.down, {}), shortcut.up, {});
  if (correction.defined() && correction.scalar_type() != branch.scalar_type()) correction = correction.to(at::kFloat);
  return kernels::add_fitted(branch, x, correction);
}

}  // namespace dynslice
