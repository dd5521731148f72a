// Causal attention of whole windows, in fp32 or bf16, on CPUs with AVX512_BF16: LibTorch's own hands its products to
// MKL, which has no kernels for the bf16 of other vendors' processors.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace dynslice::kernels {

// Whether causal_attention serves this tensor on this processor.
[[nodiscard]] bool causal_attention_applies(const at::Tensor& qkv);

// qkv [B, T, heads + 2 kv_heads, head_dim], contiguous fp32 or bf16: query, key and value heads, queries and keys
// rotated. A token sees the last `window` ones, itself included (0: all before it); scores are capped where `cap` is
// not 0. → [B, T, heads * head_dim] in the
// same dtype. Scores, softmax and sums are fp32; with bf16 the weights of the values are rounded to bf16, before they
// are divided by their fp32 sum.
[[nodiscard]] at::Tensor causal_attention(const at::Tensor& qkv, int64_t heads, int64_t kv_heads, int64_t window,
                                          double cap = 0);

}  // namespace dynslice::kernels
