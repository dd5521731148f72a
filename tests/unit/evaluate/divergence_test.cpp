#include "dynslice/evaluate/divergence.h"

#include <gtest/gtest.h>

#include <cmath>

#include "dynslice/evaluate/speed.h"
#include "tiny_model.h"
#include "unit/support/error_matchers.h"
#include "unit/support/temporary_folder.h"

namespace dynslice {
namespace {

using testing::expect_error;
using testing::MemoryCheckpoint;
using testing::random_windows;
using testing::tiny_model;

// Whole log-probabilities in fp64, [windows, T - 1, vocabulary].
at::Tensor log_probabilities(const MemoryCheckpoint& model, const TokenWindows& windows) {
  return testing::logits_of(model, windows)
      .to(at::kDouble)
      .log_softmax(-1)
      .view({windows.count, windows.length, -1})
      .narrow(1, 0, windows.length - 1);
}

// Σ p log(p / q) and the like, from whole distributions.
struct Direct {
  Direct(const MemoryCheckpoint& model, const MemoryCheckpoint& reference, const TokenWindows& windows) {
    const at::Tensor q = log_probabilities(model, windows), p = log_probabilities(reference, windows);
    const at::Tensor next = at::tensor(at::ArrayRef<int32_t>(windows.ids), at::kLong)
                                .view({windows.count, windows.length})
                                .narrow(1, 1, windows.length - 1)
                                .unsqueeze(2);
    kl = (p.exp() * (p - q)).sum(2);
    losses = -q.gather(2, next).squeeze(2);
    reference_losses = -p.gather(2, next).squeeze(2);
    same_top = p.argmax(2).eq(q.argmax(2)).to(at::kDouble);
  }
  at::Tensor kl, losses, reference_losses, same_top;
};

double average(const at::Tensor& values) { return values.mean().item<double>(); }

double error_of_mean(const at::Tensor& values) {
  return values.std().item<double>() / std::sqrt(static_cast<double>(values.numel()));
}

std::vector<double> list(const at::Tensor& values) {
  const at::Tensor flat = values.reshape({-1}).contiguous();
  return {flat.const_data_ptr<double>(), flat.const_data_ptr<double>() + flat.numel()};
}

Divergence measure(const MemoryCheckpoint& model, const MemoryCheckpoint& reference, const TokenWindows& windows,
                   const PerplexityOptions& options = {}, const ComputeOptions& compute = {}) {
  return measure_divergence(model, reference, compute, windows, options, no_progress());
}

TEST(Divergence, OfAModelFromItselfIsNone) {
  const MemoryCheckpoint model = tiny_model({.vocab = 20000, .tied = true});
  const Divergence result = measure(model, model, random_windows(3, 12, 20000));
  EXPECT_EQ(result.kl.maximum, 0);
  EXPECT_EQ(result.kl.minimum, 0);
  EXPECT_EQ(result.same_top.value, 1);
  EXPECT_EQ(result.same_top.standard_error, 0);
  EXPECT_EQ(result.ratio.value, 1);
  EXPECT_EQ(result.ratio.standard_error, 0);
  EXPECT_EQ(result.rms_probability_change.value, 0);
  EXPECT_NEAR(result.correlation, 1, 1e-12);
}

TEST(Divergence, IsThatOfWholeDistributions) {
  // Several blocks of the vocabulary; models of different widths.
  const MemoryCheckpoint reference = tiny_model({.vocab = 20000});
  const MemoryCheckpoint model = tiny_model({.hidden_size = 48, .layers = 2, .vocab = 20000, .tied = true, .seed = 9});
  const TokenWindows windows = random_windows(4, 12, 20000);
  const Divergence result = measure(model, reference, windows);
  const Direct direct(model, reference, windows);
  const auto near = [](double found, double expected) {
    EXPECT_NEAR(found, expected, 2e-5 * (1 + std::abs(expected)));
  };
  near(result.kl.mean.value, average(direct.kl));
  near(result.kl.mean.standard_error, error_of_mean(direct.kl));
  near(result.kl.maximum, direct.kl.max().item<double>());
  near(result.kl.median(), quantile(list(direct.kl), 0.5));
  near(result.kl.quantiles[9], quantile(list(direct.kl), 0.99));
  near(result.perplexity.mean_loss, average(direct.losses));
  near(result.reference.mean_loss, average(direct.reference_losses));
  EXPECT_EQ(result.same_top.value, average(direct.same_top));
  const at::Tensor change = at::exp(-direct.losses) - at::exp(-direct.reference_losses);
  EXPECT_NEAR(result.probability_change.mean.value, average(change), 1e-7);
  EXPECT_NEAR(result.rms_probability_change.value, std::sqrt(average(change.square())), 1e-7);
  near(result.log_ratio.value, average(direct.losses) - average(direct.reference_losses));
  EXPECT_EQ(result.perplexity.scored_tokens, 44);
}

// The formulas of llama-perplexity, with variances and covariance of the means written out.
TEST(Divergence, HasTheErrorsOfDependentMeans) {
  const MemoryCheckpoint reference = tiny_model();
  MemoryCheckpoint model = tiny_model();
  model.at("lm_head.weight") += at::randn({61, 32}) * 0.02;
  const TokenWindows windows = random_windows(6, 20, 61);
  const Divergence result = measure(model, reference, windows);
  const Direct direct(model, reference, windows);
  const double n = static_cast<double>(direct.losses.numel());
  const double a = error_of_mean(direct.losses), b = error_of_mean(direct.reference_losses);
  const double covariance =
      ((direct.losses - average(direct.losses)) * (direct.reference_losses - average(direct.reference_losses)))
          .sum()
          .item<double>() /
      (n - 1) / n;
  const double log_error = std::sqrt(a * a + b * b - 2 * covariance);
  const double ppl = std::exp(average(direct.losses)), other = std::exp(average(direct.reference_losses));
  EXPECT_NEAR(result.log_ratio.standard_error, log_error, 1e-5 * log_error + 1e-7);
  EXPECT_NEAR(result.ratio.value, ppl / other, 1e-5);
  EXPECT_NEAR(result.ratio.standard_error, ppl / other * log_error, 1e-5);
  EXPECT_NEAR(result.difference.standard_error,
              std::sqrt(ppl * ppl * a * a + other * other * b * b - 2 * covariance * ppl * other), 2e-4);
  EXPECT_NEAR(result.correlation, covariance / (a * b), 1e-5);
  const double p = average(direct.same_top);
  ASSERT_GT(p, 0);
  ASSERT_LT(p, 1);
  EXPECT_NEAR(result.same_top.standard_error, std::sqrt(p * (1 - p) / (n - 1)), 1e-9);
}

TEST(Divergence, DoesNotDependOnHowManyWindowsAreWalkedTogether) {
  const MemoryCheckpoint reference = tiny_model(), model = tiny_model({.seed = 8});
  const TokenWindows windows = random_windows(7, 12, 61);
  const Divergence together = measure(model, reference, windows);
  PerplexityOptions in_turns;
  in_turns.stream_bytes = 2 * 2 * 12 * 32 * 4;
  const Divergence apart = measure(model, reference, windows, in_turns, {.chunk_tokens = 1});
  EXPECT_NEAR(together.kl.mean.value, apart.kl.mean.value, 1e-5);
  EXPECT_NEAR(together.kl.maximum, apart.kl.maximum, 1e-4);
  EXPECT_EQ(together.same_top.value, apart.same_top.value);
}

TEST(Divergence, IsTheSameWithTheStreamsInTheScratchFile) {
  const MemoryCheckpoint reference = tiny_model(), model = tiny_model({.seed = 8});
  const TokenWindows windows = random_windows(5, 12, 61);
  const testing::TemporaryFolder folder;
  const auto store = std::make_shared<ActivationStore>(0, folder.path());
  const Divergence spilled = measure(model, reference, windows, {}, {.chunk_tokens = 24, .activations = store});
  EXPECT_EQ(spilled.kl.mean.value, measure(model, reference, windows, {}, {.chunk_tokens = 24}).kl.mean.value);
  EXPECT_GT(store->scratch_file_bytes(), 0U);
}

TEST(Divergence, ByLlamaCppsProtocolIsOfTheSecondHalfOnly) {
  const MemoryCheckpoint reference = tiny_model(), model = tiny_model({.seed = 8});
  TokenWindows windows = random_windows(3, 12, 61);
  PerplexityOptions options;
  options.protocol = PerplexityProtocol::kLlamaCpp;
  options.first_token = 1;
  const Divergence result = measure(model, reference, windows, options);
  for (int64_t w = 0; w < 3; ++w) windows.ids[static_cast<size_t>(12 * w)] = 1;
  const Direct direct(model, reference, windows);
  EXPECT_NEAR(result.kl.mean.value, average(direct.kl.narrow(1, 6, 5)), 2e-5);
  EXPECT_EQ(result.perplexity.scored_tokens, 15);
}

// Rounding both models' logits to bf16 would show as a divergence.
TEST(Divergence, HasLogitsInFp32WhateverTheDtype) {
  const MemoryCheckpoint reference = tiny_model();
  MemoryCheckpoint model = tiny_model();
  model.at("lm_head.weight") += at::randn({61, 32}) * 1e-5;  // less than bf16 shows
  const Divergence result = measure(model, reference, random_windows(3, 12, 61), {}, {.dtype = at::kBFloat16});
  EXPECT_GT(result.kl.mean.value, 0);
  EXPECT_LT(result.kl.mean.value, 1e-7);
}

TEST(Divergence, RefusesModelsOfDifferentVocabularies) {
  expect_error(ErrorKind::kUsage, {"61", "62", "vocabulary"},
               [] { measure(tiny_model(), tiny_model({.vocab = 62}), random_windows(2, 8, 61)); });
}

TEST(Divergence, NamesTheModelWhoseLogitsAreNotFinite) {
  MemoryCheckpoint broken = tiny_model();
  broken.at("lm_head.weight")[3][3] = NAN;
  expect_error(ErrorKind::kBadInput, {"tiny", "NaN"}, [&] { measure(tiny_model(), broken, random_windows(2, 8, 61)); });
}

}  // namespace
}  // namespace dynslice
