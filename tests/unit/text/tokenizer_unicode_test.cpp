#include "dynslice/text/tokenizer/tokenizer_unicode.h"

#include <gtest/gtest.h>

namespace dynslice {
namespace {

constexpr const char* kReplacement = "\xEF\xBF\xBD";

std::string replacements(int count) {
  std::string text;
  for (int i = 0; i < count; ++i) text += kReplacement;
  return text;
}

TEST(Utf8, LeavesValidTextAlone) {
  const std::string text = std::string("a\0b", 3) + "\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80\xEF\xBF\xBF\xF4\x8F\xBF\xBF";
  EXPECT_TRUE(is_valid_utf8(text));
  EXPECT_EQ(replace_invalid_utf8(text), text);
}

// The expectations are those of Unicode's table 3-8 and of Python's bytes.decode("utf-8", "replace").
TEST(Utf8, ReplacesEachMaximalInvalidSequenceByOneCharacter) {
  const std::pair<std::string, int> cases[] = {{"\xFF", 1},         {"\x80\x80", 2},         {"\xC0\xAF", 2},
                                               {"\xE2\x82", 1},     {"\xF0\x9F\x98", 1},     {"\xED\xA0\x80", 3},
                                               {"\xE0\x80\x80", 3}, {"\xF4\x90\x80\x80", 4}, {"\xF0\x80\x80\x80", 4}};
  for (const auto& [bytes, count] : cases) {
    EXPECT_FALSE(is_valid_utf8(bytes));
    EXPECT_EQ(replace_invalid_utf8("a" + bytes + "b"), "a" + replacements(count) + "b");
  }
}

TEST(Utf8, ReadsAndWritesEveryCodePoint) {
  for (uint32_t c = 0; c < 0x110000; c += c < 0x3000 ? 1 : 97) {
    if (c >= 0xD800 && c < 0xE000) continue;
    std::string text;
    append_utf8(text, c);
    ASSERT_TRUE(is_valid_utf8(text));
    ASSERT_EQ(utf8_length(text[0]), text.size());
    ASSERT_EQ(code_point_at(text), c);
    ASSERT_EQ(last_code_point("x" + text), c);
  }
}

TEST(UnicodeNormalization, ComposesAndDecomposes) {
  EXPECT_EQ(normalize_unicode("e\xCC\x81", NormalForm::kNfc), "\xC3\xA9");
  EXPECT_EQ(normalize_unicode("\xC3\xA9", NormalForm::kNfd), "e\xCC\x81");
  EXPECT_EQ(normalize_unicode("\xEF\xAC\x81", NormalForm::kNfc), "\xEF\xAC\x81");  // the ligature fi stays
  EXPECT_EQ(normalize_unicode("\xEF\xAC\x81", NormalForm::kNfkc), "fi");
}

}  // namespace
}  // namespace dynslice
