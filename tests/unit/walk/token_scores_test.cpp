#include "dynslice/walk/token_scores.h"

#include <gtest/gtest.h>

#include "tiny_model.h"
#include "unit/support/error_matchers.h"

namespace dynslice {
namespace {

// The stream of random rows in front of the head, in chunks.
ResidualStream random_stream(int64_t rows, int64_t width, int64_t chunk) {
  at::manual_seed(11);
  ResidualStream stream;
  for (const at::Tensor& part : at::randn({rows, 1, width}).split(chunk)) stream.chunks.push_back(part);
  return stream;
}

TEST(TokenScores, AreThoseOfTheWholeLogits) {
  for (const int64_t vocab : {61, 20000}) {  // one block of the vocabulary, and several
    const testing::MemoryCheckpoint model = testing::tiny_model({.vocab = vocab, .tied = true});
    const LayerWalk walk(model, {}, 1, no_progress());
    const Head head = load_head(walk);
    const ResidualStream stream = random_stream(9, 32, 4);
    const at::Tensor log_p = logits(head, stream.gather().squeeze(1)).to(at::kDouble).log_softmax(-1);
    const at::Tensor top = log_p.argmax(1);
    // Rows out of order, one with several targets, some with none, the likeliest tokens among them.
    std::vector<TokenTarget> targets{{8, 3}, {2, 60}, {2, 0}, {2, static_cast<int32_t>(vocab - 1)}};
    for (const int64_t row : {5, 2}) targets.push_back({row, top[row].item<int32_t>()});
    const at::Tensor found = score_tokens(walk, head, stream, targets, "test");
    ASSERT_EQ(found.sizes(), (std::vector<int64_t>{6, 2}));
    for (size_t i = 0; i < targets.size(); ++i) {
      const auto place = static_cast<int64_t>(i);
      EXPECT_NEAR(found[place][0].item<double>(), log_p[targets[i].row][targets[i].id].item<double>(), 1e-5);
      EXPECT_EQ(found[place][1].item<double>() == 1, top[targets[i].row].item<int64_t>() == targets[i].id);
    }
  }
}

TEST(TokenScores, RefuseTokensThatTheModelDoesNotHave) {
  const testing::MemoryCheckpoint model = testing::tiny_model();
  const LayerWalk walk(model, {}, 1, no_progress());
  testing::expect_error(ErrorKind::kBadInput, {"id 61", "61 entries"},
                        [&] { score_tokens(walk, load_head(walk), random_stream(2, 32, 2), {{1, 61}}, "test"); });
}

}  // namespace
}  // namespace dynslice
