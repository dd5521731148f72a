#include "dynslice/tensor/ridge_fit.h"

#include <gtest/gtest.h>

#include <limits>

#include "aten.h"
#include "unit/support/error_matchers.h"

namespace dynslice {
namespace {

constexpr int64_t kTokens = 1200, kFeatures = 24, kTargets = 7;

at::Tensor random_fp32(int64_t rows, int64_t columns, uint64_t seed) {
  at::manual_seed(seed);
  return at::randn({rows, columns});
}

TEST(RidgeFit, FindsTheMapThatMadeTheTargets) {
  const at::Tensor f = random_fp32(kTokens, kFeatures, 1), map = random_fp32(kFeatures, kTargets, 2);
  RidgeFit fit(kFeatures, kTargets, at::kCPU);
  fit.add(f, at::matmul(f, map));
  // The targets were rounded to fp32.
  EXPECT_LT((fit.solve(0, "a test") - map).abs().max().item<double>(), 1e-5);
}

TEST(RidgeFit, SolvesTheNormalEquationsWithTheRidgeInMeanDiagonals) {
  const at::Tensor f = random_fp32(kTokens, kFeatures, 3), y = random_fp32(kTokens, kTargets, 4);
  RidgeFit fit(kFeatures, kTargets, at::kCPU);
  // In two parts that are no multiples of any block.
  fit.add(f.narrow(0, 0, 700), y.narrow(0, 0, 700));
  fit.add(f.narrow(0, 700, kTokens - 700), y.narrow(0, 700, kTokens - 700));
  const at::Tensor f64 = f.to(at::kDouble), y64 = y.to(at::kDouble);
  at::Tensor regular = at::matmul(f64.t(), f64);
  regular.diagonal().add_(0.1 * regular.diagonal().mean());
  const at::Tensor expected = at::linalg_solve(regular, at::matmul(f64.t(), y64));
  // Products of 512 rows are summed in fp32.
  EXPECT_LT((fit.solve(0.1, "a test") - expected).abs().max().item<double>(), 1e-5);
}

TEST(RidgeFit, PullsTowardsZeroAsTheRidgeGrows) {
  const at::Tensor f = random_fp32(kTokens, kFeatures, 5), y = random_fp32(kTokens, kTargets, 6);
  double before = std::numeric_limits<double>::infinity();
  for (const double ridge : {0.0, 0.1, 1.0, 10.0}) {
    RidgeFit fit(kFeatures, kTargets, at::kCPU);
    fit.add(f, y);
    const double norm = fit.solve(ridge, "a test").norm().item<double>();
    EXPECT_LT(norm, before) << ridge;
    before = norm;
  }
}

TEST(RidgeFit, RefusesWhatIsNotFiniteAndNamesThePlace) {
  for (const bool in_targets : {false, true}) {
    at::Tensor f = random_fp32(kTokens, kFeatures, 7), y = random_fp32(kTokens, kTargets, 8);
    (in_targets ? y : f).select(0, 3).fill_(std::numeric_limits<float>::infinity());
    RidgeFit fit(kFeatures, kTargets, at::kCPU);
    fit.add(f, y);
    EXPECT_FALSE(fit.is_finite());
    testing::expect_error(ErrorKind::kBadInput, {"NaN or Inf in layer 3"},
                          [&] { static_cast<void>(fit.solve(1e-4, "layer 3")); });
  }
}

TEST(RidgeFactor, RefusesWhatIsNoSecondMomentAndNamesThePlace) {
  testing::expect_error(ErrorKind::kBadInput, {"layer 3", "positive definite", "--ridge"}, [] {
    static_cast<void>(ridge_factor(-at::eye(4, at::TensorOptions().dtype(at::kDouble)), 0, "layer 3"));
  });
}

}  // namespace
}  // namespace dynslice
