#include "dynslice/evaluate/text_levels.h"

#include <gtest/gtest.h>

#include <cmath>

namespace dynslice {
namespace {

// Every id is the text of its place in a list; what decodes to nothing is special.
class ListTokenizer final : public Tokenizer {
 public:
  explicit ListTokenizer(std::vector<std::string> pieces, bool strips_first_space = false)
      : pieces_(std::move(pieces)), strips_first_space_(strips_first_space) {}
  std::vector<int32_t> encode(std::string_view, bool) const override { return {}; }
  std::string decode(std::span<const int32_t> ids, bool) const override {
    std::string text;
    for (const int32_t id : ids) text += pieces_.at(static_cast<size_t>(id));
    if (strips_first_space_ && text.starts_with(' ')) text.erase(0, 1);
    return text;
  }
  int64_t vocab_size() const override { return static_cast<int64_t>(pieces_.size()); }
  std::optional<int32_t> bos_id() const override { return std::nullopt; }
  std::optional<int32_t> eos_id() const override { return std::nullopt; }
  bool adds_bos() const override { return false; }

 private:
  std::vector<std::string> pieces_;
  bool strips_first_space_;
};

ScoredText count(const ListTokenizer& tokenizer, const std::vector<int32_t>& ids, int64_t length,
                 PerplexityProtocol protocol = PerplexityProtocol::kFull) {
  return count_scored_text(tokenizer, {ids, static_cast<int64_t>(ids.size()) / length, length}, protocol);
}

TEST(ScoredText, LeavesOutEveryWindowsFirstToken) {
  const ListTokenizer tokenizer({"one", " two", " three", "ly", " ü"});
  // "one| two three" and " three|ly ü": "ly" goes on with a word that began in a token that is not scored.
  const ScoredText text = count(tokenizer, {0, 1, 2, 2, 3, 4}, 3);
  EXPECT_EQ(text.bytes, 4 + 6 + 2 + 3);
  EXPECT_EQ(text.words, 3);
}

TEST(ScoredText, OfLlamaCppsProtocolIsThatOfTheSecondHalf) {
  const ListTokenizer tokenizer({" a", " b", " c", " d", " e", " f"});
  // Of six tokens the losses of the last two are scored.
  const ScoredText text = count(tokenizer, {0, 1, 2, 3, 4, 5}, 6, PerplexityProtocol::kLlamaCpp);
  EXPECT_EQ(text.bytes, 4);
  EXPECT_EQ(text.words, 2);
}

TEST(ScoredText, CountsASpaceThatOnlyTheFirstTokenOfATextLoses) {
  const ListTokenizer tokenizer({" one", " two"}, true);
  const ScoredText text = count(tokenizer, {0, 1}, 2);
  EXPECT_EQ(text.bytes, 4);
  EXPECT_EQ(text.words, 1);
}

TEST(ScoredText, HasNeitherBytesNorWordsOfSpecialTokens) {
  const ListTokenizer tokenizer({"", "word", " next"});
  const ScoredText text = count(tokenizer, {0, 1, 0, 2}, 4);
  EXPECT_EQ(text.bytes, 9);
  EXPECT_EQ(text.words, 2);
}

TEST(ScoredText, PartsWordsAtUnicodesWhiteSpace) {
  // NO-BREAK SPACE, IDEOGRAPHIC SPACE, FILE SEPARATOR part words; ZERO WIDTH SPACE does not.
  const ListTokenizer tokenizer({".",
                                 "\xC2\xA0"
                                 "a",
                                 "\xE3\x80\x80"
                                 "b\x1C"
                                 "c",
                                 "\xE2\x80\x8B"
                                 "d\n\n"});
  const ScoredText text = count(tokenizer, {0, 1, 2, 3}, 4);
  EXPECT_EQ(text.words, 3);
  EXPECT_EQ(text.bytes, 3 + 6 + 6);
}

TEST(TextLevels, ShareTheLossOfAllTokensOutToWordsAndBytes) {
  Perplexity perplexity;
  perplexity.mean_loss = 2;
  perplexity.scored_tokens = 10;
  const TextLevels levels = text_levels(perplexity, {.bytes = 40, .words = 5});
  EXPECT_NEAR(levels.word_perplexity, std::exp(4.0), 1e-12);
  EXPECT_NEAR(levels.byte_perplexity, std::exp(0.5), 1e-12);
  EXPECT_NEAR(levels.bits_per_byte, 0.5 / std::log(2.0), 1e-12);
}

TEST(TextLevels, AreZeroWithoutText) {
  Perplexity perplexity;
  perplexity.mean_loss = 2;
  perplexity.scored_tokens = 10;
  const TextLevels levels = text_levels(perplexity, {});
  EXPECT_EQ(levels.word_perplexity, 0);
  EXPECT_EQ(levels.bits_per_byte, 0);
}

}  // namespace
}  // namespace dynslice
