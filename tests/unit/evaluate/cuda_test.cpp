// Perplexity, answers and speed on a CUDA device.
#include <gtest/gtest.h>

#include <cmath>

#include "dynslice/evaluate/answers.h"
#include "dynslice/evaluate/divergence.h"
#include "dynslice/evaluate/perplexity.h"
#include "dynslice/evaluate/speed.h"
#include "test_device.h"
#include "tiny_model.h"

namespace dynslice {
namespace {

class CudaEvaluation : public testing::OnDevice {};

TEST_F(CudaEvaluation, GivesTheCpusPerplexity) {
  for (const int64_t vocab : {61, 20000}) {  // one block of the output matrix, and several
    const testing::MemoryCheckpoint model = testing::tiny_model({.vocab = vocab, .tied = true});
    const TokenWindows windows = testing::random_windows(7, 12, vocab);
    const Perplexity expected = measure_perplexity(model, {}, windows, {}, no_progress());
    ComputeOptions options{.device = device_, .chunk_tokens = 24};
    const Perplexity found = measure_perplexity(model, options, windows, {}, no_progress());
    EXPECT_NEAR(found.value, expected.value, 1e-4 * expected.value);
    EXPECT_NEAR(found.standard_error, expected.standard_error, 1e-3 * expected.standard_error);

    options.dtype = at::kBFloat16;
    const Perplexity low = measure_perplexity(model, options, windows, {}, no_progress());
    EXPECT_NEAR(std::log(low.value), std::log(expected.value), 0.05);  // 8 bits of mantissa

    options.dtype = at::kFloat;
    PerplexityOptions in_turns;
    in_turns.stream_bytes = 2 * 12 * 32 * 4;
    const Perplexity apart = measure_perplexity(model, options, windows, in_turns, no_progress());
    EXPECT_NEAR(apart.value, expected.value, 1e-4 * expected.value);
  }
}

TEST_F(CudaEvaluation, ScoresAnswersAsTheCpuDoes) {
  const std::vector<Answer> answers{{{5, 6, 7, 8, 9}, 2}, {{5, 6, 7, 20}, 1}, {{5, 6, 7, 21}, 1}, {{9, 9, 9, 9}, 3}};
  for (const bool is_sliding : {false, true}) {
    ModelConfig config = testing::tiny_config({});
    if (is_sliding) config.sliding_window = 3;
    const testing::MemoryCheckpoint model = testing::random_model(config);
    const auto expected = score_answers(model, {}, answers, {}, no_progress());
    const auto found = score_answers(model, {.device = device_, .chunk_tokens = 3}, answers, {}, no_progress());
    for (size_t i = 0; i < answers.size(); ++i) {
      EXPECT_NEAR(found[i].log_likelihood, expected[i].log_likelihood, 1e-3);
      EXPECT_EQ(found[i].is_greedy, expected[i].is_greedy);
    }
  }
}

TEST_F(CudaEvaluation, GivesTheCpusDivergence) {
  for (const int64_t vocab : {61, 20000}) {
    const testing::MemoryCheckpoint reference = testing::tiny_model({.vocab = vocab});
    const testing::MemoryCheckpoint model = testing::tiny_model({.hidden_size = 48, .vocab = vocab, .seed = 9});
    const TokenWindows windows = testing::random_windows(7, 12, vocab);
    const Divergence expected = measure_divergence(model, reference, {}, windows, {}, no_progress());
    ComputeOptions options{.device = device_, .chunk_tokens = 24};
    const Divergence found = measure_divergence(model, reference, options, windows, {}, no_progress());
    EXPECT_NEAR(found.kl.mean.value, expected.kl.mean.value, 1e-3 * expected.kl.mean.value);
    EXPECT_NEAR(found.kl.maximum, expected.kl.maximum, 1e-3 * expected.kl.maximum);
    EXPECT_NEAR(found.same_top.value, expected.same_top.value, 0.02);  // of 77 tokens one may be a draw
    EXPECT_NEAR(found.log_ratio.value, expected.log_ratio.value, 1e-3);
    EXPECT_EQ(measure_divergence(model, model, options, windows, {}, no_progress()).kl.maximum, 0);
  }
}

TEST_F(CudaEvaluation, MeasuresSpeed) {
  const ResidentModel model(testing::tiny_model(), {.device = device_, .dtype = at::kBFloat16}, no_progress());
  const auto speeds =
      measure_speed({&model}, {.prompt_tokens = 9, .decode_tokens = 4, .repeats = 2, .batch = 2}, no_progress());
  EXPECT_GT(speeds[0].prefill_tokens_per_second, 0);
  EXPECT_EQ(speeds[0].token_seconds.size(), 8U);
}

}  // namespace
}  // namespace dynslice
