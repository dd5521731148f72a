#include "dynslice/plan/search.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

namespace dynslice {
namespace {

double sum(const std::vector<double>& values) { return std::accumulate(values.begin(), values.end(), 0.0); }

// Least where the last layer loses nothing, the first twice the average, and the others what is on the line between.
double leaning_loss(const std::vector<double>& ratios, int64_t /*trial*/) {
  double loss = 0;
  for (size_t i = 0; i < ratios.size(); ++i) {
    const double best = 0.5 * (1 - static_cast<double>(i) / static_cast<double>(ratios.size() - 1));
    loss += std::pow(ratios[i] - best, 2);
  }
  return loss;
}

TEST(SearchRatios, FindsASlopeOverTheDepthInFewTrials) {
  const std::vector<double> start(12, 0.25);
  RatioSearchOptions options;
  options.trials = 10;  // a constant start has no deviations to follow
  const RatioSearchResult found = search_ratios(start, options, leaning_loss);
  EXPECT_LT(leaning_loss(found.ratios, 0), 0.05 * leaning_loss(start, 0));
  EXPECT_NEAR(sum(found.ratios), sum(start), 1e-9);
  for (const RatioTrial& trial : found.trials) EXPECT_EQ(trial.mode > 0, trial.step != 0);
}

TEST(SearchRatios, GoesBackOnDeviationsThatGoTooFar) {
  const std::vector<double> wanted = {0.3, 0.25, 0.2, 0.25, 0.35, 0.15};
  std::vector<double> start;
  for (const double ratio : wanted) start.push_back(0.25 + 1.4 * (ratio - 0.25));
  const auto loss_of = [&](const std::vector<double>& ratios, int64_t /*trial*/) {
    double loss = 0;
    for (size_t i = 0; i < ratios.size(); ++i) loss += std::pow(ratios[i] - wanted[i], 2);
    return loss;
  };
  RatioSearchOptions options;
  options.trials = 4;
  options.step = 0.2;  // which takes no layer to a bound: the loss is a parabola
  const RatioSearchResult found = search_ratios(start, options, loss_of);
  for (size_t i = 0; i < wanted.size(); ++i) EXPECT_NEAR(found.ratios[i], wanted[i], 1e-6);
}

TEST(SearchRatios, ReturnsTheBestOfItsTrialsAndAsksForNoMore) {
  const std::vector<double> start = {0.1, 0.2, 0.3, 0.4, 0.5};
  RatioSearchOptions options;
  options.trials = 9;
  int64_t asked = 0;
  double least = 1e300;
  const auto loss_of = [&](const std::vector<double>& ratios, int64_t trial) {
    EXPECT_EQ(trial, asked++);
    const double loss = leaning_loss(ratios, trial);
    least = std::min(least, loss);
    return loss;
  };
  const RatioSearchResult found = search_ratios(start, options, loss_of);
  EXPECT_EQ(asked, 9);
  ASSERT_EQ(found.trials.size(), 9U);
  EXPECT_EQ(leaning_loss(found.ratios, 0), least);
}

TEST(SearchRatios, KeepsRatiosBetweenNoneAndTheMost) {
  RatioSearchOptions options;
  options.trials = 100;
  options.step = 5;
  options.max_ratio = 0.6;
  const auto anything = [](const std::vector<double>& ratios, int64_t trial) {
    for (const double ratio : ratios) {
      EXPECT_GE(ratio, 0);
      EXPECT_LE(ratio, 0.6 + 1e-12);
    }
    return -static_cast<double>(trial);
  };
  const RatioSearchResult found = search_ratios(std::vector<double>(8, 0.3), options, anything);
  EXPECT_NEAR(sum(found.ratios), 2.4, 1e-9);
}

TEST(SearchRatios, HasNothingToMoveInOneLayer) {
  const RatioSearchResult found = search_ratios({0.25}, {}, [](const std::vector<double>&, int64_t) { return 1.0; });
  EXPECT_EQ(found.ratios, std::vector<double>{0.25});
  EXPECT_EQ(found.trials.size(), 1U);
}

}  // namespace
}  // namespace dynslice
