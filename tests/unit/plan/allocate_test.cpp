#include "dynslice/plan/allocate.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "dynslice/support/error.h"

namespace dynslice {
namespace {

double mean(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

TEST(AllocateByRedundancy, GivesTheMostRedundantLayerTheLargestRatioAndTheLeastTheBase) {
  const auto ratios = allocate_by_redundancy({0.5, 0.9, 0.7}, {.average = 0.25, .base = 0.1, .max_ratio = 0.8});
  EXPECT_DOUBLE_EQ(ratios[0], 0.1);
  EXPECT_NEAR(ratios[1], 0.1 + 0.15 * 1 / 0.5, 1e-12);
  EXPECT_NEAR(ratios[2], 0.1 + 0.15 * 0.5 / 0.5, 1e-12);
}

TEST(AllocateByRedundancy, KeepsTheMeanAndTheLimitForAnyScores) {
  std::mt19937 random(1);
  std::uniform_real_distribution<double> uniform(0, 1);
  for (int trial = 0; trial < 500; ++trial) {
    std::vector<double> scores(static_cast<size_t>(2 + trial % 40));
    for (double& score : scores) score = std::pow(uniform(random), 1 + trial % 9);
    const double average = uniform(random) * 0.6, base = average * uniform(random),
                 limit = average + 0.01 + 0.3 * uniform(random);
    const auto ratios = allocate_by_redundancy(scores, {.average = average, .base = base, .max_ratio = limit});
    EXPECT_NEAR(mean(ratios), average, 1e-9);
    for (const double ratio : ratios) {
      EXPECT_GE(ratio, 0);
      EXPECT_LE(ratio, limit + 1e-12);
    }
  }
}

TEST(AllocateByRedundancy, IsConstantWhenAllScoresAreEqualOrTheBaseIsTheAverage) {
  EXPECT_EQ(allocate_by_redundancy({0.9, 0.9, 0.9}, {.average = 0.3, .base = 0.1, .max_ratio = 0.8}),
            std::vector<double>(3, 0.3));
  for (const double ratio : allocate_by_redundancy({0.1, 0.9, 0.5}, {.average = 0.3, .base = 0.3, .max_ratio = 0.8})) {
    EXPECT_NEAR(ratio, 0.3, 1e-12);
  }
}

TEST(AllocateByRedundancy, RefusesRatiosThatCannotBe) {
  const auto kind = [](const AllocateOptions& options) {
    try {
      allocate_by_redundancy({0.1, 0.2}, options);
    } catch (const Error& error) {
      return error.kind();
    }
    return ErrorKind::kInterrupted;
  };
  EXPECT_EQ(kind({.average = 1.0, .base = 0.1, .max_ratio = 0.8}), ErrorKind::kUsage);
  EXPECT_EQ(kind({.average = -0.1, .base = 0.0, .max_ratio = 0.8}), ErrorKind::kUsage);
  EXPECT_EQ(kind({.average = 0.2, .base = 0.3, .max_ratio = 0.8}), ErrorKind::kUsage);
  EXPECT_EQ(kind({.average = 0.9, .base = 0.3, .max_ratio = 0.8}), ErrorKind::kUsage);
  EXPECT_EQ(kind({.average = std::nan(""), .base = 0.3, .max_ratio = 0.8}), ErrorKind::kUsage);
}

TEST(CapRatios, GivesTheExcessToTheOthersInProportion) {
  const auto ratios = cap_ratios({1.0, 0.2, 0.4}, 0.7);
  EXPECT_NEAR(ratios[0], 0.7, 1e-12);
  EXPECT_NEAR(ratios[1], 0.3, 1e-12);
  EXPECT_NEAR(ratios[2], 0.6, 1e-12);
}

TEST(CapRatios, CapsAgainWhatTheExcessPushedOverTheLimit) {
  const auto ratios = cap_ratios({1.0, 0.6, 0.1}, 0.65);
  EXPECT_NEAR(ratios[0], 0.65, 1e-12);
  EXPECT_NEAR(ratios[1], 0.65, 1e-12);
  EXPECT_NEAR(ratios[2], 0.4, 1e-12);
}

TEST(CapRatios, SpreadsEquallyWhenTheOthersAreZero) {
  const auto ratios = cap_ratios({0.9, 0.0, 0.0}, 0.5);
  EXPECT_NEAR(ratios[1], 0.2, 1e-12);
  EXPECT_NEAR(ratios[2], 0.2, 1e-12);
}

TEST(BaseCandidates, StepFromTheAverageDownToZero) {
  const auto bases = base_candidates(0.05);
  ASSERT_EQ(bases.size(), 4U);
  EXPECT_DOUBLE_EQ(bases[0], 0.05);
  EXPECT_NEAR(bases[1], 0.03, 1e-12);
  EXPECT_NEAR(bases[2], 0.01, 1e-12);
  EXPECT_DOUBLE_EQ(bases[3], 0);
}

}  // namespace
}  // namespace dynslice
