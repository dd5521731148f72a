#include "text/tokenizer/tokenizer_regex.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "unit/text/tokenizer_fixture.h"

namespace dynslice {
namespace {

std::vector<std::string> matches(const std::string& pattern, const std::string& text) {
  const TokenizerRegex regex(pattern, "test");
  std::vector<std::string> found;
  TokenizerRegex::Matcher(regex).for_each(
      text, [&](size_t begin, size_t end) { found.push_back(text.substr(begin, end - begin)); });
  return found;
}

using Strings = std::vector<std::string>;

TEST(TokenizerRegex, DoesNotTakeTheMongolianVowelSeparatorForASpace) {
  EXPECT_EQ(matches("\\s+", "a\xE1\xA0\x8E"), Strings{});
  EXPECT_EQ(matches("[^\\s]+", "\xE1\xA0\x8E "), Strings{"\xE1\xA0\x8E"});
  EXPECT_EQ(matches("\\S", "\xE1\xA0\x8E"), Strings{"\xE1\xA0\x8E"});
  EXPECT_EQ(matches("[\\S]", " \xE1\xA0\x8E\xC2\x85"), Strings{"\xE1\xA0\x8E"});
}

TEST(TokenizerRegex, RepeatsACountedRepeatWithAPlus) {
  EXPECT_EQ(matches("\\p{N}{1,3}+", "1234567"), Strings{"1234567"});
  EXPECT_EQ(matches("(?:a|b){2}+", "ababa"), Strings{"abab"});
  EXPECT_EQ(matches("\\p{N}{1,3}", "1234567"), (Strings{"123", "456", "7"}));
}

TEST(TokenizerRegex, KeepsPossessiveRepeats) { EXPECT_EQ(matches("a++a", "aaa"), Strings{}); }

TEST(TokenizerRegex, TakesHForAHexadecimalDigit) { EXPECT_EQ(matches("\\h+", "xyz 1fG"), Strings{"1f"}); }

TEST(TokenizerRegex, MatchesAtLineEnds) { EXPECT_EQ(matches("^b$", "a\nb\nc"), Strings{"b"}); }

TEST(TokenizerRegex, SkipsAnEmptyMatchDirectlyBehindAMatch) {
  EXPECT_EQ(matches("a*", "baac"), (Strings{"", "aa", ""}));
  EXPECT_EQ(matches("", "\xC3\xA9x"), (Strings{"", "", ""}));
}

TEST(TokenizerRegex, NamesThePatternThatDoesNotCompile) {
  const std::string message = error_of(ErrorKind::kBadInput, [] { TokenizerRegex("(a", "FILE: key"); });
  EXPECT_TRUE(message.starts_with("FILE: key: ")) << message;
  EXPECT_NE(message.find("does not compile"), std::string::npos) << message;
}

TEST(TokenizerRegex, RefusesSetsInSets) {
  error_of(ErrorKind::kBadInput, [] { TokenizerRegex("[a[bc]]", "x"); });
  error_of(ErrorKind::kBadInput, [] { TokenizerRegex("[a-z&&[^b]]", "x"); });
  EXPECT_EQ(matches("[[:digit:]]+", "a12"), Strings{"12"});
}

TEST(TokenizerRegex, ReportsThatALimitWasReachedInsteadOfDroppingText) {
  const TokenizerRegex regex("(?:a+)+$b|(?:(?:a|aa)+)+c", "FILE: key");
  const std::string text(5000, 'a');
  const std::string message =
      error_of(ErrorKind::kBadInput, [&] { TokenizerRegex::Matcher(regex).for_each(text, [](size_t, size_t) {}); });
  EXPECT_TRUE(message.starts_with("FILE: key: the regular expression cannot be matched")) << message;
}

TEST(TokenizerRegex, SurvivesPatternsCutOffAnywhere) {
  const std::string pattern =
      R"((?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]+[[:alpha:]]*|\s+(?!\S)|\h\W)";
  for (size_t length = 0; length <= pattern.size(); ++length) {
    try {
      matches(pattern.substr(0, length), "It's 1234 of\n\n  them.");
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kBadInput);
    }
  }
}

}  // namespace
}  // namespace dynslice
