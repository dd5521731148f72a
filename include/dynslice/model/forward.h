// The forward of a decoder layer by the library's kernels. The same code serves dense, sliced and modular layers of
// every supported architecture; what differs are the shapes and which tensors are there.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>

#include "dynslice/model/decoder_layer.h"
#include "dynslice/model/half_forward.h"

namespace dynslice {

// How far the pairs of a head turn at every position, times the root of what the model scales scores by beyond
// head_dim^(-1/2): queries and keys take half of that each.
struct RotaryTable {
  at::Tensor cos, sin;     // [T, pairs], fp32
  at::Tensor query_scale;  // [T] fp32: what queries are multiplied by besides; undefined where that is 1
};

// Its rows `positions`, [n] int64 on its device.
[[nodiscard]] RotaryTable at_positions(const RotaryTable& table, const at::Tensor& positions);

// What all layers of a model share during a walk over windows of one length.
struct LayerContext {
  int64_t hidden_size = 0;  // the original one: the norms' divisor, whatever the width
  double rms_norm_eps = 0;
  at::Tensor sliding_mask;  // [T, S] fp32, additive, S positions seen; undefined when no window is shorter than S
  at::Tensor causal_mask;   // the same for layers that do not slide; undefined where S is T or T is 1
  bool rotary_is_interleaved = false;
  RotaryTable rotary, sliding_rotary, unrotated;  // of layers that see all, of those that slide, of those without rope
  int64_t sliding_window = 0;  // tokens a position of a sliding layer sees at most, itself included; 0: all
  Activation activation = Activation::kSilu;
  double score_cap = 0;  // of attention's scores; 0: none

  [[nodiscard]] const RotaryTable& rotary_of(const DecoderLayer& layer) const {
    if (!layer.is_rotated) return unrotated;
    return layer.is_sliding ? sliding_rotary : rotary;
  }
};

// What a gated delta net remembers of the tokens that it has seen; undefined before the first.
struct DeltaState {
  at::Tensor before;  // [B, taps - 1, channels] fp32: what the convolution sees of them
  at::Tensor memory;  // [B, value_heads, key_dim, value_dim] fp32
};

// Keys (rotated) and values of the tokens that a layer has seen, for tokens that come later.
struct LayerCache {
  at::Tensor keys, values;  // [B, kv_heads, capacity, head_dim]; fp32 on the CPU; undefined in a gated delta net
  int64_t length = 0;       // positions that are filled
  DeltaState delta = {};
};

LayerContext make_layer_context(const ModelConfig& config, int64_t window_length, at::Device device);

// The same without the masks, whose size grows with the square of the length: the start of continued contexts.
LayerContext make_position_context(const ModelConfig& config, int64_t positions, at::Device device);

// What tokens need that continue a sequence: `length` of them at positions from `first` on. `positions` holds the
// rotary tables of at least first + length positions.
LayerContext continued_context(const LayerContext& positions, int64_t first, int64_t length);

// x is the stream that enters the half layer, [B, T, in], fp32 or of the dtype of the weights.
// What its `reads` multiplies [B, T, in], and behind that what its `writes` multiplies [B, T, heads * head_dim] or
// [B, T, intermediate_size]; in the dtype of the weights.
at::Tensor half_input(const HalfLayer& half, const DecoderLayer& layer, const LayerContext& context,
                      const at::Tensor& x);
at::Tensor half_inner(const HalfLayer& half, const DecoderLayer& layer, const LayerContext& context,
                      const at::Tensor& x);

// What the half layer adds to the stream [B, T, out], in the dtype of the weights.
at::Tensor half_branch(const HalfLayer& half, const DecoderLayer& layer, const LayerContext& context,
                       const at::Tensor& x);

// branch + shortcut(x) in fp32 for what half_inner gave; `inner` [B, T, ...] may be a part of it that suits `writes`.
at::Tensor leave_half(const HalfLayer& half, const DecoderLayer& layer, const LayerContext& context,
                      const at::Tensor& inner, const at::Tensor& x);

// x [B, T, in] fp32 → the stream that leaves the half layer [B, T, out] fp32: x itself where the layer has no such
// half.
at::Tensor forward_half(const HalfLayer& half, const DecoderLayer& layer, const LayerContext& context,
                        const at::Tensor& x, const Taps& taps = {});

// x [B, T, input_width] fp32 → the stream that leaves the layer [B, T, output_width] fp32.
at::Tensor forward_layer(const DecoderLayer& layer, const LayerContext& context, const at::Tensor& x);

// The same for x that continues the sequences which the cache has seen, and is added to it. `context` is one of
// continued_context.
at::Tensor forward_layer(const DecoderLayer& layer, const LayerContext& context, const at::Tensor& x,
                         LayerCache& cache);

// The attention half with tokens mixed by `mix`: queries, keys and values as projected
// [B, T, (heads + 2 kv_heads) * head_dim] → the heads' outputs [B, T, heads * head_dim].
at::Tensor forward_attention(const DecoderLayer& layer, const LayerContext& context, const at::Tensor& x,
                             const std::function<at::Tensor(const at::Tensor&)>& mix);

// Queries, keys and values side by side [.., (heads + 2 kv_heads) * head_dim], of what was projected: in layers without
// values of their own, the keys once more.
[[nodiscard]] at::Tensor with_values(const LayerShape& shape, const at::Tensor& packed);

// Norms queries, keys and values in place, where the layer has such norms, and rotates the former two, in its order:
// qkv [B, T, heads + 2 kv_heads, head_dim], as projected.
void place_heads_(const DecoderLayer& layer, const LayerContext& context, const RotaryTable& rotary, at::Tensor& qkv);

// Of queries, keys and values as projected [B, T, ...] in a layer with output gates: these without the gates
// [B, T, (heads + 2 kv_heads) * head_dim], and what the heads' outputs are multiplied by [B, T, heads * head_dim].
struct GatedHeads {
  at::Tensor qkv, gate;
};
[[nodiscard]] GatedHeads split_gates(const LayerShape& shape, const at::Tensor& packed);

// From what a gated delta net reads the stream by [B, T, channels + values + 2 value_heads] to what it writes by
// [B, T, values]. With gradients, too.
[[nodiscard]] at::Tensor mix_by_delta(const DecoderLayer& layer, double eps, const at::Tensor& packed,
                                      DeltaState& state);

// shortcut(x) [..., out] in fp32.
at::Tensor pass(const Shortcut& shortcut, const at::Tensor& x, int64_t out);

// branch + shortcut(x) in fp32; `branch` is used up.
at::Tensor add_residual(const at::Tensor& branch, const at::Tensor& x, const Shortcut& shortcut);

}  // namespace dynslice
