// The operations of the forward with their gradients. What they compute is the walk's kernels; the gradients are made
// of the same products, so that training goes through the library that is the faster one here. Arguments that require
// no gradient cost nothing backward.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "dynslice/tensor/activation.h"

namespace dynslice::differentiable {

// x weightᵀ (+ bias) [..., out] in `dtype`; x and weight may be of another one (parameters are fp32), and so are their
// gradients.
at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, at::ScalarType dtype);

// x / sqrt(sum(x²) / divisor + eps) (* weight) of x [..., width] fp32, in `dtype`. The gradient of weight is fp32.
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, int64_t divisor, double eps, at::ScalarType dtype);

// qkv [B, T, total, head_dim] with its first `heads` heads rotated, as kernels::apply_rope_ does.
at::Tensor rope(const at::Tensor& qkv, int64_t heads, const at::Tensor& cos, const at::Tensor& sin,
                bool is_interleaved);

// gate_up [..., 2n] → act(gate) * up [..., n].
at::Tensor act_mul(const at::Tensor& gate_up, Activation activation);

}  // namespace dynslice::differentiable
