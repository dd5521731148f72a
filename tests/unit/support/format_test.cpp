#include "dynslice/support/format.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <string>

namespace dynslice {
namespace {

TEST(Format, NamesARangeOfOneByItsNumber) {
  EXPECT_EQ(span_of(3, 7), "3-7");
  EXPECT_EQ(span_of(3, 3), "3");
}

TEST(Format, SaysByHowMuchAValueChanged) {
  EXPECT_EQ(format_change(200, 150), "-25.0%");
  EXPECT_EQ(format_change(200, 300), "+50.0%");
  EXPECT_EQ(format_change(200, 200), "+0.0%");
  EXPECT_EQ(format_change(0, 5), "+0.0%");  // of nothing there is no share
}

TEST(Format, CountsInTheUnitThatFits) {
  EXPECT_EQ(format_count(0), "0");
  EXPECT_EQ(format_count(9'999), "9999");
  EXPECT_EQ(format_count(10'000), "10.0 k");
  EXPECT_EQ(format_count(134'515'008), "134.5 M");
  EXPECT_EQ(format_count(7'000'000'000), "7.00 G");
}

TEST(Format, GivesBytesInTheUnitThatFits) {
  EXPECT_EQ(format_bytes(999), "999 B");
  EXPECT_EQ(format_bytes(1'000), "1.0 kB");
  EXPECT_EQ(format_bytes(269'000'000), "269.0 MB");
  EXPECT_EQ(format_bytes(15'000'000'000), "15.00 GB");
}

TEST(Format, GivesDurationsInTheUnitsThatFit) {
  EXPECT_EQ(format_duration(0.25), "0.2 s");  // as printf rounds
  EXPECT_EQ(format_duration(65), "1 min 5 s");
  EXPECT_EQ(format_duration(3'600), "1 h 0 min");
  EXPECT_EQ(format_duration(90'061), "25 h 1 min");
}

TEST(Format, GoesToTheNextUnitRatherThanToAThousandOfOne) {
  EXPECT_EQ(format_bytes(999'949), "999.9 kB");
  EXPECT_EQ(format_bytes(999'950), "1.0 MB");
  EXPECT_EQ(format_bytes(999'999'999), "1.00 GB");
  EXPECT_EQ(format_count(999'999), "1.0 M");
  EXPECT_EQ(format_count(999'999'999), "1.00 G");
  EXPECT_EQ(format_duration(59.94), "59.9 s");
  EXPECT_EQ(format_duration(59.97), "1 min 0 s");
  EXPECT_EQ(format_duration(3'599.7), "1 h 0 min");
}

}  // namespace
}  // namespace dynslice
