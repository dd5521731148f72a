// What is done as Python does it. The expected values are Python 3.11's.
#include <gtest/gtest.h>

#include "dynslice/text/tokenizer/python_string.h"
#include "dynslice/text/tokenizer/tokenizer_unicode.h"
#include "evaluate/python_random.h"
#include "evaluate/python_text.h"

namespace dynslice {
namespace {

using Numbers = std::vector<int64_t>;

TEST(PythonRandom, DrawsTheSamplesOfPython) {
  PythonRandom random(1234);
  EXPECT_EQ(random.sample(10, 3), (Numbers{7, 1, 0}));
  EXPECT_EQ(random.sample(1000, 3), (Numbers{92, 932, 965}));
  EXPECT_EQ(random.sample(100, 7), (Numbers{74, 4, 85, 88, 10, 12, 98}));
  EXPECT_EQ(random.sample(40000, 6), (Numbers{23241, 15519, 1142, 2019, 1038, 22681}));
  EXPECT_EQ(random.sample(5, 5), (Numbers{4, 3, 2, 1, 0}));
  EXPECT_EQ(random.sample(1, 1), (Numbers{0}));
  EXPECT_EQ(random.sample(1000, 250).back(), 53);
}

TEST(PythonText, StripsWhatPythonCallsSpace) {
  EXPECT_EQ(python_rstrip(" a \t\n\x1C\xC2\xA0\xE3\x80\x80"), " a");
  EXPECT_EQ(python_strip("\xE2\x80\x83 a b \x1F"), "a b");
  EXPECT_EQ(python_strip(" \n"), "");
  EXPECT_EQ(python_rstrip("a\xE2\x80\x8B"), "a\xE2\x80\x8B");  // a zero-width space is none
}

TEST(PythonText, CapitalizesTheFirstLetterOnly) {
  EXPECT_EQ(python_capitalize("the MAN goes to Rome"), "The man goes to rome");
  EXPECT_EQ(python_capitalize(""), "");
  EXPECT_EQ(python_capitalize("\xC3\xA9T\xC3\x89"), "\xC3\x89t\xC3\xA9");        // éTÉ
  EXPECT_EQ(python_capitalize("\xC3\x9Fx"), "Ssx");                              // ßx
  EXPECT_EQ(python_capitalize("a\xCE\xA3 \xCE\xA3 b"), "A\xCF\x82 \xCF\x83 b");  // a final and a lone sigma
  EXPECT_EQ(python_capitalize("x\xC4\xB0"), "Xi\xCC\x87");                       // a capital I with a dot
}

TEST(PythonText, CountsCharactersAndReplaces) {
  EXPECT_EQ(count_characters("na\xC3\xAFve \xF0\x9F\x98\x80"), 7);
  EXPECT_EQ(python::replace_text("a   b  c", "  ", " "), "a  b c");
  EXPECT_EQ(python::replace_text("", "x", "y"), "");
}

}  // namespace
}  // namespace dynslice
