#include "dynslice/report/line_chart.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

namespace dynslice {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(LineChart, TellsEveryPointAndLeavesOutWhatIsNotFinite) {
  const std::string svg =
      line_chart_svg({{"a < b", {{0, 20}, {50, 25}, {100, INFINITY}}}, {"c", {{0, 20}, {100, 400}}}},
                     {"x & y", "share", "perplexity"});
  EXPECT_THAT(svg, HasSubstr("x &amp; y"));
  EXPECT_THAT(svg, HasSubstr("a &lt; b: 50, 25"));
  EXPECT_THAT(svg, HasSubstr("c: 100, 400"));
  EXPECT_THAT(svg, Not(HasSubstr("a &lt; b: 100")));
  EXPECT_THAT(svg, Not(HasSubstr("inf")));
  EXPECT_THAT(svg, Not(HasSubstr("nan")));
}

TEST(LineChart, PutsLargerValuesHigher) {
  const std::string svg = line_chart_svg({{"line", {{0, 10}, {1, 1000}}}}, {"t", "x", "y"});
  // The ends of the only line are the ends of both axes.
  EXPECT_THAT(svg, HasSubstr("d=\"M70.0 390.0L530.0 44.0\""));
}

TEST(LineChart, HasZeroOnAnEvenAxisOnly) {
  const std::vector<ChartLine> lines = {{"line", {{0, 0}, {1, 50}, {2, 100}}}};
  const std::string even = line_chart_svg(lines, {"t", "x", "y", false});
  // The middle of the values is the middle of the axis.
  EXPECT_THAT(even, HasSubstr("d=\"M70.0 390.0L300.0 217.0L530.0 44.0\""));
  EXPECT_THAT(line_chart_svg(lines, {"t", "x", "y"}), Not(HasSubstr("line: 0, 0")));
}

TEST(LineChart, OfNothingIsDrawn) { EXPECT_THAT(line_chart_svg({}, {"t", "x", "y"}), HasSubstr("</svg>")); }

}  // namespace
}  // namespace dynslice
