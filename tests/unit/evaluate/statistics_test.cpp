#include "dynslice/evaluate/statistics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

namespace dynslice {
namespace {

double difference(double a, double b) { return a - b; }

// Standard normal numbers, by Box and Muller.
std::vector<double> normal(size_t count, uint64_t seed) {
  std::mt19937_64 generator(seed);
  const auto uniform = [&] { return (static_cast<double>(generator() >> 11) + 0.5) / 9007199254740992.0; };
  std::vector<double> values(count);
  for (double& value : values) value = std::sqrt(-2 * std::log(uniform())) * std::cos(6.283185307179586 * uniform());
  return values;
}

TEST(Bootstrap, OfEqualSamplesIsNothing) {
  const std::vector<double> values = normal(50, 1);
  const Interval interval = paired_bootstrap(values, values, difference);
  EXPECT_EQ(interval.value, 0);
  EXPECT_EQ(interval.low, 0);
  EXPECT_EQ(interval.high, 0);
}

TEST(Bootstrap, OfAConstantDifferenceIsThatDifference) {
  const std::vector<double> a = normal(200, 1);
  std::vector<double> b = a;
  for (double& value : b) value -= 3;
  const Interval interval = paired_bootstrap(a, b, difference);
  EXPECT_NEAR(interval.value, 3, 1e-12);
  EXPECT_NEAR(interval.low, 3, 1e-12);
  EXPECT_NEAR(interval.high, 3, 1e-12);
}

// The mean of n values with standard deviation s lies within 1.96 s / √n with probability 95 %.
TEST(Bootstrap, IsTheNormalIntervalOfAMean) {
  const size_t n = 400;
  const std::vector<double> a = normal(n, 2), b(n, 0.0);
  double mean = 0, square = 0;
  for (const double value : a) mean += value / static_cast<double>(n);
  for (const double value : a) square += (value - mean) * (value - mean) / static_cast<double>(n);
  const double half = 1.959964 * std::sqrt(square / static_cast<double>(n));
  const Interval interval = paired_bootstrap(a, b, difference);
  // Quantiles of 10,000 resamples are right to about 2 % of the half width.
  EXPECT_NEAR(interval.low, mean - half, 0.06 * half);
  EXPECT_NEAR(interval.high, mean + half, 0.06 * half);
}

// One question of ten is answered by the first model alone: the count of such questions in a resample is binomial.
TEST(Bootstrap, IsTheBinomialIntervalOfAShare) {
  std::vector<double> a(10, 1.0), b(10, 1.0);
  b[3] = 0;
  const Interval interval = paired_bootstrap(a, b, difference);
  EXPECT_NEAR(interval.value, 0.1, 1e-12);
  // P(none) = 0.349, P(more than 3) = 0.013, P(more than 2) = 0.070.
  EXPECT_NEAR(interval.low, 0, 1e-12);
  EXPECT_NEAR(interval.high, 0.3, 1e-12);
}

// What is hard for both cancels: pairs are drawn together.
TEST(Bootstrap, OfPairsIsNarrowerThanOfTheirParts) {
  const std::vector<double> shared = normal(300, 3), noise = normal(300, 4);
  std::vector<double> a, b;
  for (size_t i = 0; i < shared.size(); ++i) {
    a.push_back(10 * shared[i] + noise[i]);
    b.push_back(10 * shared[i]);
  }
  const Interval interval = paired_bootstrap(a, b, difference);
  EXPECT_LT(interval.high - interval.low, 0.3);  // 2 * 1.96 / √300 = 0.23; of a alone it would be 2.3
}

TEST(Bootstrap, CoversTheTruthAsOftenAsItSays) {
  int covered = 0;
  for (uint64_t trial = 0; trial < 200; ++trial) {
    const std::vector<double> a = normal(100, 100 + trial), b(100, 0.0);
    const Interval interval = paired_bootstrap(a, b, difference, {.resamples = 1000, .seed = trial});
    covered += interval.low <= 0 && 0 <= interval.high;
  }
  // 95 % of 200, ± 3 standard deviations, and a little less, as percentile intervals of 100 values are.
  EXPECT_GE(covered, 178);
  EXPECT_LE(covered, 199);
}

TEST(Bootstrap, OfANonlinearStatisticIsItsQuantiles) {
  const std::vector<double> a = normal(100, 5), b = normal(100, 6);
  const Interval plain = paired_bootstrap(a, b, difference);
  const Interval grown = paired_bootstrap(a, b, [](double x, double y) { return std::exp(x - y); });
  EXPECT_NEAR(grown.value, std::exp(plain.value), 1e-12);
  EXPECT_NEAR(grown.low, std::exp(plain.low), 1e-4);  // between neighbours a chord stands for the curve
  EXPECT_NEAR(grown.high, std::exp(plain.high), 1e-4);
}

TEST(Bootstrap, DependsOnTheSeedAlone) {
  const std::vector<double> a = normal(60, 7), b = normal(60, 8);
  const auto low = [&](uint64_t seed) { return paired_bootstrap(a, b, difference, {.seed = seed}).low; };
  EXPECT_EQ(low(1), low(1));
  EXPECT_NE(low(1), low(2));
}

TEST(Quantiles, LieBetweenNeighbours) {
  const std::vector<double> values = {1, 2, 4};
  EXPECT_EQ(quantile_of_sorted(values, 0), 1);
  EXPECT_EQ(quantile_of_sorted(values, 0.25), 1.5);
  EXPECT_EQ(quantile_of_sorted(values, 0.75), 3);
  EXPECT_EQ(quantile_of_sorted(values, 1), 4);
}

}  // namespace
}  // namespace dynslice
