// The one order in which a half layer computes, whatever computes it: the kernels of walks and generation (forward.h),
// or the differentiable operations of training (train/trainable_layer.h).
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>

#include "dynslice/model/decoder_layer.h"

namespace dynslice {

// What somebody wants to see of a half layer while it is computed, in the dtype of the weights.
struct Taps {
  std::function<void(const at::Tensor&)> input = {};  // what `reads` multiplies [B, T, in]
  std::function<void(const at::Tensor&)> inner = {};  // what `writes` multiplies [B, T, heads * head_dim or neurons]
};

inline at::Tensor tapped(const std::function<void(const at::Tensor&)>& tap, at::Tensor x) {
  if (tap) tap(x);
  return x;
}

// `Ops` are the operations on one layer:
//   norm(half, x)        what its linears read of the stream x
//   linear(matrix, x)    x through a matrix of the layer, a Linear DecoderLayer::*
//   mix_tokens(packed)   queries, keys and values side by side → the heads' outputs
//   activate(read)       what the MLP multiplies by its last matrix
//   behind(half, branch) what is added to the stream, of what the last matrix gave
//   add(branch, x, half) branch + shortcut(x), fp32
// What `writes` multiplies, of what `reads` gave.
template <typename Ops>
at::Tensor half_inner_of(const Ops& ops, const HalfLayer& half, const at::Tensor& read) {
  return half.which == Half::kAttention ? ops.mix_tokens(read) : ops.activate(read);
}

// Each step's input is free before the next but one: these are three functions for that.
template <typename Ops>
at::Tensor half_inner_by(const Ops& ops, const HalfLayer& half, const at::Tensor& x, const Taps& taps = {}) {
  const at::Tensor read = ops.linear(half.reads, tapped(taps.input, ops.norm(half, x)));
  return half_inner_of(ops, half, read);
}

template <typename Ops>
at::Tensor half_branch_by(const Ops& ops, const HalfLayer& half, const at::Tensor& x, const Taps& taps = {}) {
  return ops.behind(half, ops.linear(half.writes, tapped(taps.inner, half_inner_by(ops, half, x, taps))));
}

template <typename Ops>
at::Tensor forward_half_by(const Ops& ops, const HalfLayer& half, const at::Tensor& x, const Taps& taps = {}) {
  return ops.add(half_branch_by(ops, half, x, taps), x, half);
}

}  // namespace dynslice
