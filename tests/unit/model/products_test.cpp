#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>

#include "model/kernels.h"
#include "tensor/aten.h"

namespace dynslice {
namespace {

// bf16 keeps 8 bits: a rounding is off by 2^-9 of its value at most. Whether the processor or fp32 makes up for it, the
// sum before that rounding is fp32.
void expect_rounded(const at::Tensor& found, const at::Tensor& wide) {
  ASSERT_EQ(found.scalar_type(), at::kBFloat16);
  const at::Tensor error = (found.to(at::kDouble) - wide).abs(), allowed = wide.abs() / 256 + 1e-3;
  EXPECT_TRUE(error.le(allowed).all().item<bool>()) << (error / allowed).max().item<double>();
}

struct Factors {
  at::Tensor x, weight, bias;
};

Factors factors(int64_t rows, int64_t in, int64_t out) {
  at::manual_seed(4);
  const auto random = [](at::IntArrayRef sizes) { return at::randn(sizes).to(at::kBFloat16); };
  return {random({rows, in}), random({out, in}), random({out})};
}

at::Tensor wide_product(const Factors& of) {
  return at::linear(of.x.to(at::kDouble), of.weight.to(at::kDouble), of.bias.to(at::kDouble));
}

TEST(Products, OfBf16AreRoundedOnce) {
  const Factors of = factors(48, 96, 80);
  expect_rounded(kernels::linear(of.x, of.weight, of.bias), wide_product(of));
  expect_rounded(kernels::linear(of.x.view({2, 24, 96}), of.weight, of.bias), wide_product(of).view({2, 24, 80}));
  expect_rounded(kernels::matmul(of.x, of.weight.t()), wide_product({of.x, of.weight, at::zeros({80})}));
  const at::Tensor columns = of.x.t().contiguous().t();
  expect_rounded(kernels::matmul(columns, of.weight.t()), wide_product({of.x, of.weight, at::zeros({80})}));
}

// More rows of weights than are converted to fp32 at a time, where that is done.
TEST(Products, OfBf16WithManyRowsAreComplete) {
  const Factors of = factors(20, 8192, 2050);
  const at::Tensor found = kernels::linear(of.x, of.weight, of.bias), wide = wide_product(of);
  ASSERT_EQ(found.sizes(), wide.sizes());
  EXPECT_LT((found.to(at::kDouble) - wide).norm().item<double>(), 0.003 * wide.norm().item<double>());
}

// Loops instead of them took over a thousand times as long.
TEST(Products, OfBf16AreNotMuchSlowerThanOfFp32) {
  const Factors of = factors(512, 1024, 1024);
  const Factors wide = {of.x.to(at::kFloat), of.weight.to(at::kFloat), {}};
  const auto quickest = [](const Factors& these) {
    double best = 1e9;
    for (int repeat = 0; repeat < 5; ++repeat) {
      const auto start = std::chrono::steady_clock::now();
      kernels::linear(these.x, these.weight, {});
      best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    return best;
  };
  EXPECT_LT(quickest(of), 10 * quickest(wide));
}

}  // namespace
}  // namespace dynslice
