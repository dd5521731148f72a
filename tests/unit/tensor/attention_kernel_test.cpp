#include "dynslice/tensor/attention_kernel.h"

#include <gtest/gtest.h>

#include <cmath>

#include "aten.h"

namespace dynslice {
namespace {

struct Case {
  int64_t batch, length, heads, kv_heads, head_dim, window;
  double cap = 0;
};

// softmax(q kᵀ / sqrt(head_dim)) v in fp64, from the definition.
at::Tensor reference(const at::Tensor& qkv, const Case& c) {
  const at::Tensor wide = qkv.to(at::kDouble).transpose(1, 2);  // [B, heads, T, head_dim]
  const int64_t group = c.heads / c.kv_heads;
  const at::Tensor q = wide.narrow(1, 0, c.heads);
  const at::Tensor k = wide.narrow(1, c.heads, c.kv_heads).repeat_interleave(group, 1);
  const at::Tensor v = wide.narrow(1, c.heads + c.kv_heads, c.kv_heads).repeat_interleave(group, 1);
  const at::Tensor row = at::arange(c.length).view({-1, 1}), column = at::arange(c.length).view({1, -1});
  at::Tensor hidden = column.gt(row);
  if (c.window > 0) hidden = hidden.logical_or(column.le(row - c.window));
  at::Tensor scores = at::matmul(q, k.transpose(2, 3)) / std::sqrt(static_cast<double>(c.head_dim));
  if (c.cap != 0) scores = (scores / c.cap).tanh() * c.cap;
  scores = scores.masked_fill(hidden, -INFINITY).softmax(-1);
  return at::matmul(scores, v).transpose(1, 2).reshape({c.batch, c.length, c.heads * c.head_dim});
}

class EveryAttention : public ::testing::TestWithParam<Case> {};

TEST_P(EveryAttention, IsThatOfTheDefinition) {
  const Case c = GetParam();
  at::manual_seed(3);
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const at::Tensor qkv = (2 * at::randn({c.batch, c.length, c.heads + 2 * c.kv_heads, c.head_dim})).to(dtype);
    if (!kernels::causal_attention_applies(qkv)) continue;  // another processor: LibTorch's attention serves there
    const at::Tensor out = kernels::causal_attention(qkv, c.heads, c.kv_heads, c.window, c.cap);
    const double error = (out.to(at::kDouble) - reference(qkv, c)).abs().max().item<double>();
    // Values are of size 2 to 8; bf16 has 8 bits, in the weights and in the result.
    EXPECT_LT(error, dtype == at::kFloat ? 2e-5 : 4e-2) << c10::toString(dtype);
  }
}

INSTANTIATE_TEST_SUITE_P(Kernels, EveryAttention,
                         ::testing::Values(Case{2, 64, 4, 2, 64, 0}, Case{1, 1, 2, 1, 32, 0}, Case{3, 67, 6, 3, 16, 0},
                                           Case{1, 200, 3, 1, 128, 0}, Case{2, 150, 4, 4, 80, 20},
                                           Case{1, 300, 2, 2, 64, 128}, Case{1, 130, 2, 1, 48, 1},
                                           Case{2, 150, 4, 2, 256, 0, 5.0}, Case{1, 200, 2, 1, 64, 40, 2.0}));

TEST(Attention, HandsNaNOn) {
  at::Tensor qkv = at::randn({1, 32, 3, 32});
  if (!kernels::causal_attention_applies(qkv)) return;
  qkv[0][5][1][0] = std::nanf("");
  const at::Tensor out = kernels::causal_attention(qkv, 1, 1, 0)[0];
  EXPECT_TRUE(out.narrow(0, 0, 5).isfinite().all().item<bool>());
  EXPECT_TRUE(out.narrow(0, 5, 27).isnan().any(1).all().item<bool>());
}

}  // namespace
}  // namespace dynslice
