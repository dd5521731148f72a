// The gated delta rule (Yang et al., "Gated Delta Networks", arXiv 2412.06464): attention whose memory is one matrix a
// head. Composed of ATen operators, so that gradients pass through it.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace dynslice::kernels {

// y_t = Σ_j weight_j x_{t - taps + 1 + j} channel by channel. x [B, T, C]; weight [C, 1, taps]; before [B, taps - 1,
// C], what came before x, undefined: zeros. → [B, T, C] fp32. With `after`, that gets what comes before what follows x.
[[nodiscard]] at::Tensor causal_convolution(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& before,
                                            at::Tensor* after = nullptr);

// Queries, keys [B, T, key_heads, dk] and values [B, T, value_heads, dv] of tokens; decay [B, T, value_heads], the
// logarithm of what is left of the memory at every token, at most 0; rate [B, T, value_heads], how much of the error
// is written. All fp32. Value heads h of key head h / (value_heads / key_heads) share its queries and keys, which are
// brought to length 1, and queries to dk^(-1/2).
struct DeltaTokens {
  at::Tensor queries, keys, values, decay, rate;
};

// At every token S ← exp(decay) S, S ← S + k ⊗ rate (v - kᵀ S), and what is read is qᵀ S: [B, T, value_heads, dv].
// `memory` [B, value_heads, dk, dv], undefined: zeros, is what S was before the first, and becomes what it is behind
// the last. Equation 10 of the paper in chunks of 64 tokens, with one triangular solve for each (section 3.3).
[[nodiscard]] at::Tensor gated_delta_rule(const DeltaTokens& tokens, at::Tensor& memory);

}  // namespace dynslice::kernels
