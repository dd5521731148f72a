// Causal attention whose scores are capped before they are masked: cap tanh(s / cap), as in Gemma 2 (arXiv 2408.00118,
// section 2). No kernel of LibTorch's has that.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace dynslice::kernels {

// q [B, heads, T, head_dim], the last T of S positions; k, v [B, kv_heads, S, head_dim]; all rotated. A token sees the
// last `window` ones, itself included (0: all before it). → [B, heads, T, head_dim] in q's dtype, by operators that
// have gradients; scores are fp32 (fp64 for such tensors), and never more than a block of them is in memory.
[[nodiscard]] at::Tensor capped_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, int64_t window,
                                          double cap);

}  // namespace dynslice::kernels
