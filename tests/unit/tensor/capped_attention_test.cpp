#include "dynslice/tensor/capped_attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "aten.h"

namespace dynslice {
namespace {

// The formula itself, in fp64 and with all scores in memory.
at::Tensor expected(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, int64_t window, double cap) {
  const int64_t group = q.size(1) / k.size(1), length = q.size(2), seen = k.size(2);
  const auto of_all = [&](const at::Tensor& shared) { return shared.to(at::kDouble).repeat_interleave(group, 1); };
  const double scale = 1 / std::sqrt(static_cast<double>(q.size(3)));
  const at::Tensor scores = at::matmul(q.to(at::kDouble), of_all(k).transpose(2, 3)) * scale;
  const at::Tensor query = at::arange(seen - length, seen).view({-1, 1}), key = at::arange(seen).view({1, -1});
  at::Tensor hidden = key.gt(query);
  if (window > 0) hidden = hidden.logical_or(key.le(query - window));
  const at::Tensor capped = ((scores / cap).tanh() * cap).masked_fill(hidden, -std::numeric_limits<double>::infinity());
  return at::matmul(capped.softmax(-1), of_all(v));
}

TEST(CappedAttention, IsTheFormulaInBlocksOfAnySize) {
  at::manual_seed(4);
  struct Shape {
    int64_t heads, kv_heads, length, seen, window;
  };
  // The last has more scores than one block.
  for (const Shape& one : {Shape{4, 2, 9, 9, 0}, Shape{4, 4, 9, 9, 3}, Shape{6, 2, 4, 30, 0}, Shape{6, 2, 4, 30, 7},
                           Shape{1, 1, 1, 12, 5}, Shape{8, 2, 400, 450, 100}, Shape{8, 2, 400, 450, 0}}) {
    const at::Tensor q = at::randn({2, one.heads, one.length, 16}) * 3;
    const at::Tensor k = at::randn({2, one.kv_heads, one.seen, 16}), v = at::randn({2, one.kv_heads, one.seen, 16});
    const at::Tensor found = kernels::capped_attention(q, k, v, one.window, 1.5);
    EXPECT_LT((found - expected(q, k, v, one.window, 1.5)).abs().max().item<double>(), 1e-5)
        << one.length << " of " << one.seen << ", window " << one.window;
    const at::Tensor uncapped = expected(q, k, v, one.window, 1e9);
    EXPECT_GT((found - uncapped).abs().max().item<double>(), 0.01);
  }
}

TEST(CappedAttention, KeepsTheDtypeAndHasGradients) {
  at::manual_seed(5);
  const at::Tensor x = at::randn({1, 2, 6, 8});
  EXPECT_EQ(
      kernels::capped_attention(x.to(at::kBFloat16), x.to(at::kBFloat16), x.to(at::kBFloat16), 0, 2).scalar_type(),
      at::kBFloat16);
  const at::Tensor q = x.clone().requires_grad_();
  const at::Tensor direction = at::randn_like(x), along = at::randn_like(x);
  (kernels::capped_attention(q, x, x, 3, 2) * along).sum().backward();
  const auto loss = [&](double step) {
    return (expected(x + direction * step, x, x, 3, 2) * along).sum().item<double>();
  };
  EXPECT_NEAR((q.grad() * direction).sum().item<double>(), (loss(1e-4) - loss(-1e-4)) / 2e-4, 1e-3);
}

}  // namespace
}  // namespace dynslice
