#include "dynslice/plan/target.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "dynslice/support/error.h"

namespace dynslice {
namespace {

TEST(FindAverage, InvertsAShareThatRisesInSteps) {
  // Widths in multiples of 8 of 576, and a share that lags behind the ratio, as embeddings make it do.
  const auto share = [](double average) { return 0.7 * std::floor(average * 72) / 72 + 0.01 * average; };
  for (const double wanted : {0.05, 0.25, 0.5}) {
    const double average = find_average({.wanted = wanted, .largest = 0.8, .what = "parameters"}, share);
    EXPECT_NEAR(share(average), wanted, 0.5 * 0.7 / 72 + 0.01) << wanted;
    for (const double other : {average - 1.5 / 72, average + 1.5 / 72}) {
      EXPECT_LE(std::abs(share(average) - wanted), std::abs(share(other) - wanted)) << wanted;
    }
  }
}

TEST(FindAverage, SlicesNothingWhenNothingIsToGo) {
  EXPECT_EQ(find_average({.wanted = 0, .largest = 0.8, .what = "bytes"}, [](double average) { return average; }), 0);
}

TEST(FindAverage, SaysHowMuchCanGoAtMost) {
  try {
    find_average({.wanted = 0.7, .largest = 0.5, .what = "bytes"}, [](double average) { return 0.5 * average; });
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUsage);
    EXPECT_THAT(error.what(), ::testing::AllOf(::testing::HasSubstr("70% of the bytes"), ::testing::HasSubstr("25%")));
  }
}

}  // namespace
}  // namespace dynslice
