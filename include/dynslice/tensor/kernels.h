// Element-wise kernels of the forward, fused for fp32 and bf16 on the CPU, composed of ATen operators elsewhere.
// Arithmetic is fp32 whatever the tensors hold.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "dynslice/tensor/activation.h"

namespace dynslice::kernels {

// y = x weightᵀ (+ bias); x is converted to weight's dtype. On the CPU in fp32 the faster of MKL and oneDNN
// for this vendor's processors does the product. A few rows of x (decode_kernels.h) are multiplied, and returned, in
// fp32 whatever weight's dtype.
[[nodiscard]] at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias);

// a b of matrices [m, k] and [k, n] in any layout, by the same choice of library.
[[nodiscard]] at::Tensor matmul(const at::Tensor& a, const at::Tensor& b);

// Whether this processor multiplies matrices of that dtype itself; else `linear` and `matmul` convert them to fp32, and
// round the product.
[[nodiscard]] bool multiplies(at::ScalarType dtype);

// Whether `linear` uses oneDNN for fp32 on the CPU; MKL otherwise.
[[nodiscard]] bool uses_onednn();

// x / sqrt(sum(x²) / divisor + eps) (* weight). x [..., width]; the result is `dtype`. A sliced
// stream is divided by the original hidden size.
[[nodiscard]] at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, int64_t divisor, double eps,
                                  at::ScalarType dtype);

// (x - mean(x)) / sqrt(variance(x) + eps) * weight + bias (Ba et al., arXiv 1607.06450). x [..., width], weight and
// bias [width] fp32; the result is `dtype`. With gradients, too.
[[nodiscard]] at::Tensor layer_norm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, double eps,
                                    at::ScalarType dtype);

// Rotates the first `heads` heads of qkv [B, T, total, head_dim] in place, of each its first 2 n channels, whose two
// halves are the real and imaginary parts (Hugging Face's layout), or, interleaved, every channel and the next one.
// cos, sin [T, n] fp32.
void apply_rope_(at::Tensor& qkv, int64_t heads, const at::Tensor& cos, const at::Tensor& sin,
                 bool is_interleaved = false);

// gate_up [..., 2n] → act(gate) * up [..., n].
[[nodiscard]] at::Tensor act_mul(const at::Tensor& gate_up, Activation activation);

// act(x), of x's dtype.
[[nodiscard]] at::Tensor act(const at::Tensor& x, Activation activation);

// branch + fit(x) (+ correction) in fp32, where fit cuts x to branch's width or fills it up with zeros, and correction
// [..., at most that width] is of branch's dtype. An fp32 `branch` is used up.
[[nodiscard]] at::Tensor add_fitted(const at::Tensor& branch, const at::Tensor& x, const at::Tensor& correction);

// x becomes cap tanh(x / cap), in place; nothing happens where cap is 0.
void soft_cap_(at::Tensor& x, double cap);

// Whether no value is NaN or Inf. One pass over the bits on all threads, and no copy, for contiguous fp32, bf16 and
// fp16 on the CPU.
[[nodiscard]] bool all_finite(const at::Tensor& values);

// losses[i] = logsumexp(logits[i]) as fp64 [n] of logits [n, v].
[[nodiscard]] at::Tensor logsumexp_rows(const at::Tensor& logits);

}  // namespace dynslice::kernels
