#include "dynslice/evaluate/perplexity.h"

#include <gtest/gtest.h>

#include <cmath>

#include "dynslice/support/error.h"
#include "dynslice/walk/head.h"
#include "tiny_model.h"
#include "unit/support/temporary_folder.h"

namespace dynslice {
namespace {

using testing::MemoryCheckpoint;
using testing::random_windows;
using testing::tiny_model;

// Losses from whole logits in fp64: [windows, T - 1].
at::Tensor exact_losses(const MemoryCheckpoint& model, const TokenWindows& windows) {
  const at::Tensor all = testing::logits_of(model, windows).to(at::kDouble);
  const at::Tensor log_p =
      all.log_softmax(-1).view({windows.count, windows.length, -1}).narrow(1, 0, windows.length - 1);
  const at::Tensor ids =
      at::tensor(at::ArrayRef<int32_t>(windows.ids), at::kLong).view({windows.count, windows.length});
  return -log_p.gather(2, ids.narrow(1, 1, windows.length - 1).unsqueeze(2)).squeeze(2);
}

TEST(Perplexity, IsTheExponentialOfTheMeanLoss) {
  const MemoryCheckpoint model = tiny_model();
  const TokenWindows windows = random_windows(5, 12, 61);
  const Perplexity result = measure_perplexity(model, {}, windows, {}, no_progress());
  const at::Tensor losses = exact_losses(model, windows);
  EXPECT_NEAR(std::log(result.value), losses.mean().item<double>(), 1e-5);
  EXPECT_NEAR(result.standard_error / result.value, losses.std().item<double>() / std::sqrt(55.0), 1e-5);
  EXPECT_EQ(result.windows, 5);
  EXPECT_EQ(result.tokens, 60);
  EXPECT_EQ(result.scored_tokens, 55);
}

TEST(Perplexity, IsExactAcrossVocabularyBlocks) {
  const MemoryCheckpoint model = tiny_model({.vocab = 20000, .tied = true});
  const TokenWindows windows = random_windows(2, 12, 20000);
  const Perplexity result = measure_perplexity(model, {}, windows, {}, no_progress());
  EXPECT_NEAR(std::log(result.value), exact_losses(model, windows).mean().item<double>(), 1e-5);
}

TEST(Perplexity, DoesNotDependOnHowManyWindowsAreWalkedTogether) {
  const MemoryCheckpoint model = tiny_model();
  const TokenWindows windows = random_windows(7, 12, 61);
  const Perplexity together = measure_perplexity(model, {}, windows, {}, no_progress());
  PerplexityOptions in_turns;
  in_turns.stream_bytes = 2 * 12 * 32 * 4;
  const Perplexity apart = measure_perplexity(model, {.chunk_tokens = 1}, windows, in_turns, no_progress());
  EXPECT_NEAR(together.value, apart.value, 1e-4 * together.value);
}

TEST(Perplexity, ByLlamaCppsProtocolScoresTheSecondHalfOnly) {
  const MemoryCheckpoint model = tiny_model();
  TokenWindows windows = random_windows(3, 12, 61);
  PerplexityOptions options;
  options.protocol = PerplexityProtocol::kLlamaCpp;
  options.first_token = 1;
  const Perplexity result = measure_perplexity(model, {}, windows, options, no_progress());
  for (int64_t w = 0; w < 3; ++w) windows.ids[static_cast<size_t>(12 * w)] = 1;
  // llama-perplexity scores the predictions made at positions 6 to 10 of 12.
  EXPECT_NEAR(std::log(result.value), exact_losses(model, windows).narrow(1, 6, 5).mean().item<double>(), 1e-5);
  EXPECT_EQ(result.scored_tokens, 15);
}

TEST(Perplexity, RefusesWindowsThatCannotBe) {
  const MemoryCheckpoint model = tiny_model();
  EXPECT_THROW(measure_perplexity(model, {}, random_windows(2, 1, 61), {}, no_progress()), Error);
  EXPECT_THROW(measure_perplexity(model, {}, random_windows(2, 129, 61), {}, no_progress()), Error);
  TokenWindows foreign = random_windows(2, 8, 61);
  foreign.ids[3] = 61;
  EXPECT_THROW(measure_perplexity(model, {}, foreign, {}, no_progress()), Error);
}

TEST(Perplexity, IsTheSameWithTheStreamInTheScratchFile) {
  const MemoryCheckpoint model = tiny_model();
  const TokenWindows windows = random_windows(5, 12, 61);
  const testing::TemporaryFolder folder;
  const auto store = std::make_shared<ActivationStore>(0, folder.path());
  const double spilled =
      measure_perplexity(model, {.chunk_tokens = 24, .activations = store}, windows, {}, no_progress()).value;
  EXPECT_EQ(spilled, measure_perplexity(model, {.chunk_tokens = 24}, windows, {}, no_progress()).value);
  EXPECT_GT(store->scratch_file_bytes(), 0U);
}

}  // namespace
}  // namespace dynslice
