#include <gtest/gtest.h>

#include <limits>

#include "aten.h"
#include "dynslice/support/error.h"
#include "dynslice/tensor/inner_moment.h"
#include "dynslice/tensor/inverse_norms.h"
#include "dynslice/tensor/leverage.h"
#include "dynslice/tensor/logit_blocks.h"
#include "dynslice/tensor/second_moment.h"
#include "unit/support/error_matchers.h"

namespace dynslice {
namespace {

using testing::expect_error;

at::Tensor random_rows(int64_t rows, int64_t width, uint64_t seed) {
  at::manual_seed(seed);
  return at::randn({rows, width});
}

// Products of fp32 that are added in fp64.
void expect_near(const at::Tensor& found, const at::Tensor& expected) {
  ASSERT_EQ(found.sizes(), expected.sizes());
  EXPECT_LE((found - expected).abs().max().item<double>(), 1e-4 * expected.abs().max().item<double>());
}

class SecondMomentOfWidth : public ::testing::TestWithParam<int64_t> {};

TEST_P(SecondMomentOfWidth, IsTheSumOfOuterProductsOfAllThatWasAdded) {
  const at::Tensor x = random_rows(700, GetParam(), 1);
  SecondMoment moment(GetParam(), at::kCPU);
  moment.add(x.narrow(0, 0, 100).reshape({4, 25, GetParam()}));
  moment.add(x.narrow(0, 100, 600));
  const at::Tensor wide = x.to(at::kDouble);
  const at::Tensor found = moment.take("here");
  EXPECT_EQ(found.scalar_type(), at::kDouble);
  expect_near(found, at::matmul(wide.t(), wide));
  EXPECT_TRUE(at::equal(found, found.t()));
}

// Below, at and above the width of a block.
INSTANTIATE_TEST_SUITE_P(Moments, SecondMomentOfWidth, ::testing::Values(1, 7, 64, 512, 600));

TEST(SecondMoment, NamesThePlaceOfWhatIsNoNumber) {
  for (const double value : {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    at::Tensor x = random_rows(3, 5, 1);
    x[1][4] = value;
    SecondMoment moment(5, at::kCPU);
    moment.add(x);
    expect_error(ErrorKind::kBadInput, {"the stream of layer 3"}, [&] { moment.take("the stream of layer 3"); });
  }
}

TEST(InverseNorms, BringEveryRowToLengthOneAndLeaveZerosAlone) {
  at::Tensor rows = random_rows(6, 4, 2) * 100;
  rows[2].zero_();
  const at::Tensor norms = (rows * inverse_norms(rows)).norm(2, 1);
  for (int64_t row = 0; row < 6; ++row) EXPECT_NEAR(norms[row].item<double>(), row == 2 ? 0 : 1, 1e-6);
}

class InnerMomentByNorm : public ::testing::TestWithParam<bool> {};

TEST_P(InnerMomentByNorm, SolvesTheWeightedLeastSquaresOfErrors) {
  const int64_t tokens = 600, inner = 12, outputs = 5;
  const at::Tensor z = random_rows(tokens, inner, 3), x = random_rows(tokens, 8, 4) * 3;
  const at::Tensor error = at::matmul(z, random_rows(inner, outputs, 5)) + random_rows(tokens, outputs, 6);
  InnerMoment moment(inner, outputs, GetParam(), at::kCPU);
  moment.add(z.narrow(0, 0, 50), error.narrow(0, 0, 50), x.narrow(0, 0, 50));
  moment.add(z.narrow(0, 50, 550), error.narrow(0, 50, 550), x.narrow(0, 50, 550));
  const at::Tensor wide = x.to(at::kDouble);
  const at::Tensor weights = GetParam() ? wide.square().sum(1).reciprocal() : at::ones({tokens}, at::kDouble);
  const at::Tensor weighted = z.to(at::kDouble) * weights.unsqueeze(1);
  const at::Tensor second = at::matmul(weighted.t(), z.to(at::kDouble));
  const at::Tensor cross = at::matmul(weighted.t(), error.to(at::kDouble));
  expect_near(moment.cross(), cross);
  EXPECT_NEAR(moment.weight(), weights.sum().item<double>(), 1e-4 * moment.weight());
  const double ridge = 0.1;
  at::Tensor regular = second.clone();
  regular.diagonal().add_(ridge * second.diagonal().mean().item<double>());
  expect_near(moment.solve(ridge, "here"), at::linalg_solve(regular, cross));
}

INSTANTIATE_TEST_SUITE_P(Moments, InnerMomentByNorm, ::testing::Bool());

TEST(Leverage, TakesTheNeuronsWithTheLargestScoresInTheirOrder) {
  const at::Tensor rows = (random_rows(40, 9, 7) * at::linspace(0.2, 3, 9)).to(at::kDouble);
  const at::Tensor moment = at::matmul(rows.t(), rows), before = moment.clone();
  const double mean = moment.diagonal().mean().item<double>();
  const at::Tensor scores =
      at::matmul(moment, at::linalg_inv(moment + mean * at::eye(9, at::kDouble))).diagonal().contiguous();
  const at::Tensor found = largest_leverage(moment, 4);
  EXPECT_TRUE(at::equal(found, std::get<0>(std::get<1>(scores.topk(4)).sort())));
  EXPECT_TRUE(at::equal(moment, before));
}

TEST(NextIds, AreTheOnesBehindInTheSameWindow) {
  const TokenWindows windows{{1, 2, 3, 4, 5, 6}, 2, 3};
  EXPECT_TRUE(at::equal(next_ids(windows, at::kCPU), at::tensor({2, 3, 0, 5, 6, 0}, at::kLong)));
}

TEST(PickTargets, CollectsTheLogitsOfTheTargetsBlockByBlock) {
  const at::Tensor logits = random_rows(5, 10, 8), targets = at::tensor({0, 9, 4, 3, 7}, at::kLong);
  const at::Tensor picked = at::zeros({5}, at::kDouble);
  for (const auto& [begin, columns] : {std::pair<int64_t, int64_t>{0, 4}, {4, 4}, {8, 2}})
    pick_targets(picked, logits.narrow(1, begin, columns), targets, begin);
  EXPECT_TRUE(at::equal(picked, logits.gather(1, targets.unsqueeze(1)).squeeze(1).to(at::kDouble)));
}

}  // namespace
}  // namespace dynslice
