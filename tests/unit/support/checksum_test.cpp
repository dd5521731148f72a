#include <gtest/gtest.h>

#include <string>

#include "dynslice/support/hash.h"

namespace dynslice {
namespace {

std::string checksum(const std::string& text, size_t step) {
  Checksum checksum;
  for (size_t i = 0; i < text.size(); i += step) checksum.update(text.data() + i, std::min(step, text.size() - i));
  return checksum.hex();
}

// Values of xxHash's own documentation and test vectors.
TEST(Checksum, IsXxh64) {
  EXPECT_EQ(checksum("", 1), "ef46db3751d8e999");
  EXPECT_EQ(checksum("a", 1), "d24ec4f1a98c6e5b");
  EXPECT_EQ(checksum("abc", 3), "44bc2cf5ad770999");
  EXPECT_EQ(checksum("Nobody inspects the spammish repetition", 100), "fbcea83c8a378bf1");
}

TEST(Checksum, IsThatOfJournalsWrittenBeforeXxHashComputedIt) {
  std::string text;
  for (int i = 0; i < 1000; ++i) text += static_cast<char>(i * 7);
  EXPECT_EQ(checksum(text, 100), "25275608a9cfc168");
}

TEST(Checksum, GoesOnAfterItsValueWasAskedFor) {
  Checksum whole, asked;
  whole.update("abcdef", 6);
  asked.update("abc", 3);
  EXPECT_EQ(asked.hex(), "44bc2cf5ad770999");
  asked.update(nullptr, 0);
  asked.update("def", 3);
  EXPECT_EQ(asked.value(), whole.value());
}

TEST(Checksum, DoesNotDependOnHowTheBytesCome) {
  std::string text;
  for (int i = 0; i < 1000; ++i) text += static_cast<char>(i * 7);
  for (const size_t step : {1, 3, 31, 32, 33, 64, 999}) EXPECT_EQ(checksum(text, step), checksum(text, 1000)) << step;
}

}  // namespace
}  // namespace dynslice
