// Kernels for one token at a time on the CPU. There every weight and every cached key is read once for a handful of
// operations: what counts is to read memory at full speed, which matrix libraries do not with so few rows (see
// docs/performance.md).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace dynslice::kernels {

// Most rows of x for which linear_few_rows is the faster way.
inline constexpr int64_t kFewRows = 8;

// Whether linear_few_rows can do x weightᵀ and is the faster way to.
[[nodiscard]] bool few_rows_apply(const at::Tensor& x, const at::Tensor& weight);

// y = x weightᵀ (+ bias) for few rows of x: x [..., in] of any dtype, weight [out, in] contiguous, fp32 or bf16.
// Computed and returned in fp32, whatever the weight's dtype.
[[nodiscard]] at::Tensor linear_few_rows(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias);

// x weightᵀ (+ bias), and what changes its first entries, each of it optional: more_x more_weightᵀ and the first
// entries of `passed` are added, less_x less_weight is subtracted. Same tensors as above; more_weight has at most `out`
// rows, less_weight [rank, w] at most as many columns, `passed` is fp32 of any width.
struct FewRowsSum {
  at::Tensor x, weight, bias = {};
  at::Tensor more_x = {}, more_weight = {};
  at::Tensor less_x = {}, less_weight = {};
  at::Tensor passed = {};
};

// All sums in one sweep over their weights: starting threads and reading memory anew costs as much as a small matrix.
[[nodiscard]] std::vector<at::Tensor> sums_of_few_rows(std::vector<FewRowsSum> sums);

// Attention of one query a sequence over positions [begin, end) of a cache. q [B, heads, 1, head_dim] fp32; keys,
// values [B, kv_heads, capacity, head_dim] fp32, contiguous. `cap` is that of the scores, 0 for none. Returns
// [B, 1, heads * head_dim] fp32.
[[nodiscard]] at::Tensor attend_one(const at::Tensor& q, const at::Tensor& keys, const at::Tensor& values,
                                    int64_t begin, int64_t end, double cap = 0);

}  // namespace dynslice::kernels
