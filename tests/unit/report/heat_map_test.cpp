#include "dynslice/report/heat_map.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace dynslice {
namespace {

using ::testing::HasSubstr;

TEST(HeatMap, TellsEveryCell) {
  const std::string svg = heat_map_svg({{1, 0.25}, {0.25, 1}}, "a < b & c");
  EXPECT_THAT(svg, HasSubstr("a &lt; b &amp; c"));
  EXPECT_THAT(svg, HasSubstr("layers 0 and 1: 0.2500"));
  EXPECT_THAT(svg, HasSubstr("layers 1 and 1: 1.0000"));
  EXPECT_THAT(svg, HasSubstr("rgb(253,231,37)"));  // the highest
  EXPECT_THAT(svg, HasSubstr("rgb(68,1,84)"));     // the lowest
}

TEST(HeatMap, OfEqualValuesIsDrawn) { EXPECT_THAT(heat_map_svg({{1, 1}, {1, 1}}, "x"), HasSubstr("</svg>")); }

}  // namespace
}  // namespace dynslice
