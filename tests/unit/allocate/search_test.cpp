#include "dynslice/allocate/search.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

namespace dynslice {
namespace {

double sum(const std::vector<double>& values) { return std::accumulate(values.begin(), values.end(), 0.0); }

// Least where the first half of the layers loses nothing and the second twice the average.
double uneven_loss(const std::vector<double>& ratios, int64_t /*trial*/) {
  double loss = 0;
  for (size_t i = 0; i < ratios.size(); ++i) loss += std::pow(ratios[i] - (i < ratios.size() / 2 ? 0.0 : 0.5), 2);
  return loss;
}

TEST(SearchRatios, ComesNearTheBest) {
  const std::vector<double> start(12, 0.25);
  RatioSearchOptions options;
  options.trials = 300;
  const RatioSearchResult found = search_ratios(start, options, uneven_loss);
  EXPECT_LT(uneven_loss(found.ratios, 0), 0.2 * uneven_loss(start, 0));
  EXPECT_NEAR(sum(found.ratios), sum(start), 1e-9);
}

TEST(SearchRatios, ReturnsTheBestOfItsTrialsAndAsksForNoMore) {
  const std::vector<double> start = {0.1, 0.2, 0.3, 0.4, 0.5};
  RatioSearchOptions options;
  options.trials = 9;
  int64_t asked = 0;
  double least = 1e300;
  const auto loss_of = [&](const std::vector<double>& ratios, int64_t trial) {
    EXPECT_EQ(trial, asked++);
    const double loss = uneven_loss(ratios, trial);
    least = std::min(least, loss);
    return loss;
  };
  const RatioSearchResult found = search_ratios(start, options, loss_of);
  EXPECT_EQ(asked, 9);
  ASSERT_EQ(found.trials.size(), 9U);
  EXPECT_EQ(uneven_loss(found.ratios, 0), least);
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
  EXPECT_EQ(search_ratios({0.25}, {}, [](const std::vector<double>&, int64_t) { return 1.0; }).ratios,
            std::vector<double>{0.25});
}

}  // namespace
}  // namespace dynslice
