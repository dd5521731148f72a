#include "dynslice/plan/budget.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "dynslice/support/error.h"

namespace dynslice {
namespace {

LossCurve power_curve(double factor, double power, int64_t units) {
  LossCurve curve;
  for (int64_t r = 0; r <= units; ++r) {
    curve.sizes.push_back(static_cast<double>(r));
    curve.losses.push_back(factor * std::pow(static_cast<double>(r), power));
  }
  return curve;
}

double loss(const std::vector<LossCurve>& curves, const std::vector<int64_t>& given) {
  double sum = 0;
  for (size_t i = 0; i < curves.size(); ++i) sum += curves[i].losses[static_cast<size_t>(given[i])];
  return sum;
}

TEST(AllocateByLosses, FindsTheLeastSumOfConvexCurves) {
  const std::vector<LossCurve> curves = {power_curve(1, 2, 12), power_curve(3, 1.5, 12), power_curve(0.2, 2.5, 12)};
  for (int64_t total = 0; total <= 36; ++total) {
    const std::vector<double> given = allocate_by_losses(curves, static_cast<double>(total));
    EXPECT_NEAR(std::accumulate(given.begin(), given.end(), 0.0), static_cast<double>(total), 1e-9);
    double best = 1e300;
    for (int64_t a = 0; a <= 12; ++a) {
      for (int64_t b = 0; b <= 12; ++b) {
        const int64_t c = total - a - b;
        if (c >= 0 && c <= 12) best = std::min(best, loss(curves, {a, b, c}));
      }
    }
    const std::vector<int64_t> whole = {std::llround(given[0]), std::llround(given[1]), std::llround(given[2])};
    EXPECT_NEAR(loss(curves, whole), best, 1e-9) << total;
  }
}

TEST(AllocateByLosses, TakesFromWhatCostsNothingFirst) {
  const std::vector<LossCurve> curves = {power_curve(1, 1, 10), power_curve(0, 1, 10)};
  EXPECT_EQ(allocate_by_losses(curves, 10), (std::vector<double>{0, 10}));
  EXPECT_EQ(allocate_by_losses(curves, 13), (std::vector<double>{3, 10}));
}

TEST(AllocateByLosses, GivesPricesByWeightAndNotByStep) {
  const LossCurve small = power_curve(1, 1, 10);
  LossCurve large = small;  // ten times the weights at the same loss
  for (double& size : large.sizes) size *= 10;
  EXPECT_EQ(allocate_by_losses({small, large}, 100), (std::vector<double>{0, 100}));
}

TEST(AllocateByLosses, TakesWholeStepsOfWhatCannotBeDivided) {
  const LossCurve heads{{0, 40, 80}, {0, 4, 9}, /*divisible=*/false};  // 0.1 and 0.125 a weight
  const LossCurve neurons{{0, 100}, {0, 20}, /*divisible=*/true};      // 0.2
  EXPECT_EQ(allocate_by_losses({heads, neurons}, 30), (std::vector<double>{0, 30}));
  EXPECT_EQ(allocate_by_losses({heads, neurons}, 60), (std::vector<double>{40, 20}));
  EXPECT_EQ(allocate_by_losses({heads, neurons}, 95), (std::vector<double>{80, 15}));
  EXPECT_EQ(allocate_by_losses({heads}, 70), (std::vector<double>{40}));  // nothing else is left to take
  EXPECT_THROW(allocate_by_losses({heads}, 200), Error);
}

TEST(AllocateByLosses, RefusesMoreThanThereIs) { EXPECT_THROW(allocate_by_losses({power_curve(1, 1, 10)}, 11), Error); }

}  // namespace
}  // namespace dynslice
