#include "dynslice/evaluate/answers.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "dynslice/walk/head.h"
#include "tiny_model.h"
#include "unit/support/error_matchers.h"

namespace dynslice {
namespace {

using testing::expect_error;

// Every character is a token, but for a space, which goes with the character behind it; "=" stands for BOS.
class LetterTokenizer final : public Tokenizer {
 public:
  explicit LetterTokenizer(bool adds_bos) : adds_bos_(adds_bos) {}
  std::vector<int32_t> encode(std::string_view text, bool add_special) const override {
    std::vector<int32_t> ids;
    if (adds_bos_ && add_special) ids.push_back('=');
    for (size_t i = 0; i < text.size(); ++i) {
      const bool joins = text[i] == ' ' && i + 1 < text.size() && text[i + 1] != ' ';
      if (joins) ++i;
      ids.push_back((joins ? 128 : 0) + text[i]);
    }
    return ids;
  }
  std::string decode(std::span<const int32_t> ids, bool) const override {
    std::string text;
    for (const int32_t id : ids) text += static_cast<char>(id & 127);
    return text;
  }
  int64_t vocab_size() const override { return 256; }
  std::optional<int32_t> bos_id() const override { return '='; }
  std::optional<int32_t> eos_id() const override { return std::nullopt; }
  bool adds_bos() const override { return adds_bos_; }

 private:
  bool adds_bos_;
};

TEST(AnswerEncoder, CutsTheWholeBehindTheContextsTokens) {
  const LetterTokenizer tokenizer(false);
  AnswerEncoder encoder(tokenizer, 100);
  const Answer answer = encoder.encode("ab", " cd", "here");
  EXPECT_EQ(answer.ids, (std::vector<int32_t>{'a', 'b', 128 + 'c', 'd'}));
  EXPECT_EQ(answer.scored, 2);
  EXPECT_EQ(answer.cut, 0);
}

TEST(AnswerEncoder, MovesSpacesAtTheContextsEndToTheContinuation) {
  const LetterTokenizer tokenizer(false);
  AnswerEncoder encoder(tokenizer, 100);
  const Answer answer = encoder.encode("ab ", "cd", "here");
  EXPECT_EQ(answer.ids, (std::vector<int32_t>{'a', 'b', 128 + 'c', 'd'}));
  EXPECT_EQ(answer.scored, 2);
}

TEST(AnswerEncoder, AddsBosOnceAndNotBeforeATextThatBeginsWithIt) {
  const LetterTokenizer tokenizer(true);
  AnswerEncoder encoder(tokenizer, 100);
  EXPECT_EQ(encoder.encode("a", "c", "here").ids, (std::vector<int32_t>{'=', 'a', 'c'}));
  EXPECT_EQ(encoder.encode("=a", "c", "here").ids, (std::vector<int32_t>{'=', 'a', 'c'}));
}

TEST(AnswerEncoder, LetsBosStandForAnEmptyContext) {
  const LetterTokenizer tokenizer(false);
  AnswerEncoder encoder(tokenizer, 100);
  EXPECT_EQ(encoder.encode("", "cd", "here").ids, (std::vector<int32_t>{'=', 'c', 'd'}));
  const Answer begun = encoder.encode("", "=cd", "here");
  EXPECT_EQ(begun.ids, (std::vector<int32_t>{'=', 'c', 'd'}));
  EXPECT_EQ(begun.scored, 2);
}

TEST(AnswerEncoder, TakesTheLastTokensOfTooMany) {
  const LetterTokenizer tokenizer(false);
  AnswerEncoder encoder(tokenizer, 4);
  const Answer whole = encoder.encode("abc", "de", "here");  // the last token is only predicted
  EXPECT_EQ(whole.ids.size(), 5U);
  EXPECT_EQ(whole.cut, 0);
  const Answer cut = encoder.encode("abcdef", "gh", "here");
  EXPECT_EQ(cut.ids, (std::vector<int32_t>{'d', 'e', 'f', 'g', 'h'}));
  EXPECT_EQ(cut.scored, 2);
  EXPECT_EQ(cut.cut, 3);
}

TEST(AnswerEncoder, RefusesAnswersThatCannotBeScored) {
  const LetterTokenizer tokenizer(false);
  AnswerEncoder encoder(tokenizer, 4);
  expect_error(ErrorKind::kBadInput, {"file: line 3", "5 tokens", "maximum of 4"},
               [&] { encoder.encode("a", "bcdef", "file: line 3"); });
  expect_error(ErrorKind::kBadInput, {"file: line 3", "no tokens"}, [&] { encoder.encode("a", "", "file: line 3"); });
}

// Answers with beginnings in common, of one token and of several, in no order.
std::vector<Answer> some_answers() {
  return {{{5, 6, 7, 8, 9}, 2},      {{1, 2, 3}, 1}, {{5, 6, 7, 20}, 1},   {{5, 6, 7, 21}, 1},
          {{5, 6, 7, 8, 10, 11}, 3}, {{1, 2, 4}, 1}, {{9, 9, 9, 9, 9}, 4}, {{5, 6, 7, 8, 9}, 1},
          {{5, 6, 7, 8, 9}, 2}};
}

// From the logits of every answer alone, in fp64.
std::vector<AnswerScore> exact_scores(const Checkpoint& model, const std::vector<Answer>& answers) {
  std::vector<AnswerScore> scores;
  for (const Answer& answer : answers) {
    const auto length = static_cast<int64_t>(answer.ids.size());
    const LayerWalk walk(model, {}, length, no_progress());
    ResidualStream stream = walk.embed({answer.ids, 1, length});
    run_dense(walk, "test", stream);
    const at::Tensor log_p = logits(load_head(walk), stream.gather()[0]).to(at::kDouble).log_softmax(-1);
    AnswerScore score{0, true};
    for (int64_t i = length - answer.scored; i < length; ++i) {
      const int64_t id = answer.ids[static_cast<size_t>(i)];
      score.log_likelihood += log_p[i - 1][id].item<double>();
      score.is_greedy = score.is_greedy && log_p[i - 1].argmax().item<int64_t>() == id;
    }
    scores.push_back(score);
  }
  return scores;
}

void expect_scores(const std::vector<AnswerScore>& found, const std::vector<AnswerScore>& expected) {
  ASSERT_EQ(found.size(), expected.size());
  for (size_t i = 0; i < found.size(); ++i) {
    EXPECT_NEAR(found[i].log_likelihood, expected[i].log_likelihood, 1e-4) << "answer " << i;
    EXPECT_EQ(found[i].is_greedy, expected[i].is_greedy) << "answer " << i;
  }
}

TEST(Answers, AreScoredAsIfEachWereAlone) {
  const testing::MemoryCheckpoint model = testing::tiny_model();
  expect_scores(score_answers(model, {}, some_answers(), {}, no_progress()), exact_scores(model, some_answers()));
}

TEST(Answers, KnowWhichIsTheLikeliestContinuation) {
  const testing::MemoryCheckpoint model = testing::tiny_model();
  std::vector<Answer> answers;
  for (int32_t id = 0; id < 61; ++id) answers.push_back({{5, 6, id}, 1});
  const auto scores = score_answers(model, {}, answers, {}, no_progress());
  const auto likeliest = std::max_element(scores.begin(), scores.end(), [](const AnswerScore& a, const AnswerScore& b) {
    return a.log_likelihood < b.log_likelihood;
  });
  EXPECT_EQ(std::count_if(scores.begin(), scores.end(), [](const AnswerScore& score) { return score.is_greedy; }), 1);
  EXPECT_TRUE(likeliest->is_greedy);
}

TEST(Answers, DoNotDependOnWhatIsWalkedTogether) {
  const testing::MemoryCheckpoint model = testing::tiny_model();
  const auto together = score_answers(model, {}, some_answers(), {}, no_progress());
  AnswerOptions in_turns;
  in_turns.stream_bytes = 4 * 32 * 4;  // four rows
  expect_scores(score_answers(model, {.chunk_tokens = 3}, some_answers(), in_turns, no_progress()), together);
}

TEST(Answers, CountTheTokensThatAWalkComputes) {
  const AnswerAmount amount = count_rows(some_answers());
  // 1 2; 5 6 7 8 10, of which 5 6 7 8 serve six answers; 9 9 9 9.
  EXPECT_EQ(amount.rows, 2 + 5 + 4);
  EXPECT_EQ(amount.longest, 5);
}

}  // namespace
}  // namespace dynslice
