#include "dynslice/train/trainable_layer.h"

#include <algorithm>
#include <cmath>

#include "aten.h"
#include "dynslice/tensor/capped_attention.h"
#include "dynslice/tensor/kernels.h"
#include "dynslice/tensor/random.h"
#include "train/differentiable.h"

namespace dynslice {
namespace {

// The operations of half_forward.h with gradients, and low-rank updates beside the matrices.
class DifferentiableOps {
 public:
  DifferentiableOps(const DecoderLayer& layer, const LayerContext& context, at::ScalarType dtype,
                    const LayerUpdates* updates, std::optional<uint64_t> dropout_seed)
      : layer_(layer), context_(context), dtype_(dtype), updates_(updates), dropout_seed_(dropout_seed) {}

  LayerStreams run(const at::Tensor& x) const {
    const at::Tensor middle = kAttentionHalf.is_in(layer_.shape) ? forward_half_by(*this, kAttentionHalf, x) : x;
    return {middle, forward_half_by(*this, kMlpHalf, middle)};
  }

  at::Tensor norm(const HalfLayer& half, const at::Tensor& x) const {
    if (!layer_.shape.has_input_norms) return x.to(dtype_);
    const at::Tensor &weight = layer_.*half.norm, &bias = layer_.*half.norm_bias;
    if (bias.defined()) return kernels::layer_norm(x, weight, bias, context_.rms_norm_eps, dtype_);
    return differentiable::rms_norm(x, weight, context_.hidden_size, context_.rms_norm_eps, dtype_);
  }

  at::Tensor linear(Linear DecoderLayer::* matrix, const at::Tensor& x) const {
    const Linear& weights = layer_.*matrix;
    at::Tensor y = differentiable::linear(x, weights.weight, weights.bias, dtype_);
    if (updates_ == nullptr) return y;
    std::vector<at::Tensor> additions;
    int64_t end = 0;  // of the rows that have an addition so far
    bool any = false;
    for (size_t place = 0; place < updates_->parts.size(); ++place) {
      const LowRankUpdate& part = updates_->parts[place];
      if (part.matrix != matrix) continue;
      if (part.first_row > end) additions.push_back(zeros(y, part.first_row - end));
      const at::Tensor low = differentiable::linear(dropped(x, place), part.a, {}, dtype_);
      additions.push_back(differentiable::linear(low, part.b, {}, dtype_));
      end = part.first_row + part.rows;
      any = true;
    }
    if (!any) return y;
    if (end < y.size(-1)) additions.push_back(zeros(y, y.size(-1) - end));
    return at::add(y, additions.size() == 1 ? additions.front() : at::cat(additions, -1), updates_->scale);
  }

  static at::Tensor zeros(const at::Tensor& like, int64_t width) {
    auto sizes = like.sizes().vec();
    sizes.back() = width;
    return at::zeros(sizes, like.options());
  }

  // What the update at that place of the layer's sees of x.
  at::Tensor dropped(const at::Tensor& x, size_t place) const {
    if (!dropout_seed_ || updates_->dropout <= 0) return x;
    // The sequence's seed alone decides: activations that are computed a second time for the backward drop the same,
    // and so do sequences in whatever company.
    const at::Tensor mask = at::empty(x.sizes(), x.options());
    const uint64_t seed = *dropout_seed_ + (static_cast<uint64_t>(place) << 56);
    for (int64_t row = 0; row < x.size(0); ++row) {
      const at::Generator random = seeded_generator(x.device(), seed + static_cast<uint64_t>(row));
      mask.select(0, row).bernoulli_(1 - updates_->dropout, random);
    }
    return x * mask.div_(1 - updates_->dropout);
  }

  at::Tensor mix_tokens(const at::Tensor& packed) const {
    if (layer_.shape.is_delta()) {
      DeltaState none;
      return mix_by_delta(layer_, context_.rms_norm_eps, packed, none);
    }
    if (!layer_.shape.has_output_gate) return mix_heads(packed);
    const GatedHeads heads = split_gates(layer_.shape, packed);
    return mix_heads(heads.qkv) * heads.gate;
  }

  at::Tensor mix_heads(const at::Tensor& packed) const {
    const int64_t batch = packed.size(0), length = packed.size(1);
    const int64_t heads = layer_.shape.num_attention_heads, kv = layer_.shape.num_key_value_heads;
    const at::Tensor qkv =
        placed(with_values(layer_.shape, packed).view({batch, length, heads + 2 * kv, layer_.shape.head_dim}));
    const auto head_major = [&](int64_t first, int64_t count) {
      at::Tensor part = qkv.narrow(2, first, count).transpose(1, 2);
      if (part.device().is_cpu()) part = part.to(at::kFloat);  // LibTorch's attention is slow in bf16 there
      return count < heads ? part.repeat_interleave(heads / count, 1) : part;
    };
    const at::Tensor q = head_major(0, heads), k = head_major(heads, kv), v = head_major(heads + kv, kv);
    const int64_t window = layer_.is_sliding ? context_.sliding_window : 0;
    if (context_.score_cap != 0) return gathered(kernels::capped_attention(q, k, v, window, context_.score_cap));
    const double scale = 1.0 / std::sqrt(static_cast<double>(layer_.shape.head_dim));
    const bool masked = layer_.is_sliding && context_.sliding_mask.defined();
    const at::Tensor attended =
        masked ? at::scaled_dot_product_attention(q, k, v, context_.sliding_mask.to(q.scalar_type()), 0.0, false, scale)
               : at::scaled_dot_product_attention(q, k, v, {}, 0.0, /*is_causal=*/true, scale);
    return gathered(attended);
  }

  // [B, heads, T, head_dim] → [B, T, heads * head_dim]
  static at::Tensor gathered(const at::Tensor& attended) { return attended.transpose(1, 2).flatten(2); }

  // Queries and keys normed, where the layer has such norms, and rotated, in the layer's order.
  at::Tensor placed(const at::Tensor& qkv) const {
    const int64_t heads = layer_.shape.num_attention_heads, kv = layer_.shape.num_key_value_heads;
    const RotaryTable& rotary = context_.rotary_of(layer_);
    const auto rotated = [&](const at::Tensor& x) {
      return differentiable::rope(x, heads + kv, rotary.cos, rotary.sin, context_.rotary_is_interleaved);
    };
    const bool is_rotated_first = layer_.shape.query_key_norm == QueryKeyNorm::kRotatedHead;
    at::Tensor result = is_rotated_first ? heads_normed(rotated(qkv)) : rotated(heads_normed(qkv));
    if (!rotary.query_scale.defined()) return result;
    const at::Tensor scale = rotary.query_scale.to(result.scalar_type()).view({-1, 1, 1});
    return at::cat({result.narrow(2, 0, heads) * scale, result.narrow(2, heads, 2 * kv)}, 2);
  }

  // Queries, keys and values of every head normed, where the layer has such norms.
  at::Tensor heads_normed(const at::Tensor& qkv) const {
    if (!layer_.query_norm.defined()) return qkv;
    const int64_t heads = layer_.shape.num_attention_heads, kv = layer_.shape.num_key_value_heads;
    const bool is_whole = layer_.shape.query_key_norm == QueryKeyNorm::kWhole;
    const auto norm = [&](int64_t first, int64_t count, const at::Tensor& weight) {
      const at::Tensor part = qkv.narrow(2, first, count).to(at::kFloat);
      const at::Tensor values = is_whole && weight.defined() ? part.flatten(2) : part;
      return differentiable::rms_norm(values, weight, values.size(-1), context_.rms_norm_eps, dtype_)
          .view(part.sizes());
    };
    const at::Tensor values = layer_.shape.has_value_norm ? norm(heads + kv, kv, {}) : qkv.narrow(2, heads + kv, kv);
    return at::cat({norm(0, heads, layer_.query_norm), norm(heads, kv, layer_.key_norm), values}, 2);
  }

  at::Tensor activate(const at::Tensor& read) const {
    return layer_.shape.is_gated ? differentiable::act_mul(read, context_.activation)
                                 : kernels::act(read, context_.activation);
  }

  at::Tensor behind(const HalfLayer& half, const at::Tensor& branch) const {
    const at::Tensor& weight = layer_.*half.branch_norm;
    const at::Tensor normed = weight.defined()
                                  ? differentiable::rms_norm(branch.to(at::kFloat), weight, context_.hidden_size,
                                                             context_.rms_norm_eps, dtype_)
                                  : branch;
    return layer_.branch_scale == 1 ? normed : normed * layer_.branch_scale;
  }

  // branch + shortcut(x) in fp32, scaled where the layer has a scale.
  at::Tensor add(const at::Tensor& branch, const at::Tensor& x, const HalfLayer& half) const {
    return scaled(half, layer_, sum_of(branch, x, layer_.*half.shortcut));
  }

  at::Tensor sum_of(const at::Tensor& branch, const at::Tensor& x, const Shortcut& shortcut) const {
    const int64_t width = branch.size(-1);
    if (shortcut.kind == ShortcutKind::kMatrix)
      return branch.to(at::kFloat) + differentiable::linear(x, shortcut.weight, {}, at::kFloat);
    at::Tensor sum = branch.to(at::kFloat) + fit(x, width);
    if (!shortcut.down.defined()) return sum;
    const at::ScalarType dtype = shortcut.down.scalar_type();
    const at::Tensor correction =
        differentiable::linear(differentiable::linear(x, shortcut.down, {}, dtype), shortcut.up, {}, dtype);
    return sum + fit(correction.to(at::kFloat), width);
  }

  static at::Tensor fit(const at::Tensor& x, int64_t width) {
    if (x.size(-1) == width) return x;
    return x.size(-1) > width ? x.narrow(-1, 0, width) : at::constant_pad_nd(x, {0, width - x.size(-1)});
  }

  const DecoderLayer& layer_;
  const LayerContext& context_;
  const at::ScalarType dtype_;
  const LayerUpdates* updates_;
  const std::optional<uint64_t> dropout_seed_;
};

}  // namespace

at::Tensor forward_trainable(const DecoderLayer& layer, const LayerContext& context, const at::Tensor& x,
                             at::ScalarType dtype, const LayerUpdates* updates, std::optional<uint64_t> dropout_seed) {
  return DifferentiableOps(layer, context, dtype, updates, dropout_seed).run(x).leaving;
}

LayerStreams forward_trainable_halves(const DecoderLayer& layer, const LayerContext& context, const at::Tensor& x,
                                      at::ScalarType dtype) {
  return DifferentiableOps(layer, context, dtype, nullptr, std::nullopt).run(x);
}

DecoderLayer with_updates(DecoderLayer layer, const LayerUpdates& updates) {
  layer = with_dtype(std::move(layer), at::kFloat);
  for (const LowRankUpdate& part : updates.parts) {
    Linear& linear = layer.*part.matrix;
    const at::Tensor addition =
        kernels::matmul(part.b.detach(), part.a.detach()).mul_(updates.scale).to(linear.weight.device());
    linear.weight.narrow(0, part.first_row, part.rows).add_(addition);
  }
  return layer;
}

}  // namespace dynslice
