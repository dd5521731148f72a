#include "dynslice/score/score.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

#include "dynslice/support/error.h"
#include "dynslice/walk/head.h"
#include "tiny_model.h"
#include "unit/support/temporary_folder.h"

namespace dynslice {
namespace {

using testing::all_streams;
using testing::MemoryCheckpoint;
using testing::random_windows;
using testing::tiny_model;

at::Tensor cosines(const at::Tensor& x, const at::Tensor& y) { return (x * y).sum(1) / x.norm(2, 1) / y.norm(2, 1); }

class Scores : public ::testing::Test {
 protected:
  MemoryCheckpoint model_ = tiny_model({.layers = 4});
  TokenWindows windows_ = random_windows(3, 16, 61);
  LayerWalk walk_{model_, {.chunk_tokens = 32}, 16, no_progress()};
};

TEST_F(Scores, OfEveryMetricAreMeansOverTokensOfTheCosine) {
  const auto streams = all_streams(walk_, windows_);
  const auto lr = score_layers(walk_, windows_, {parse_metric("lr")});
  const auto bi = score_layers(walk_, windows_, {parse_metric("bi")});
  const auto lim = score_layers(walk_, windows_, {parse_metric("lim")});
  const auto angular = score_layers(walk_, windows_, {parse_metric("angular")});
  const auto window = score_layers(walk_, windows_, {parse_metric("window:3")});
  ASSERT_EQ(lr.values.size(), 4U);
  for (size_t i = 0; i < 4; ++i) {
    const at::Tensor cosine = cosines(streams[i], streams[i + 1]);
    EXPECT_NEAR(lr.values[i], cosine.mean().item<double>(), 1e-9);
    EXPECT_NEAR(bi.values[i], 1 - cosine.mean().item<double>(), 1e-9);
    EXPECT_NEAR(lim.values[i], -cosine.mean().item<double>(), 1e-9);
    EXPECT_NEAR(angular.values[i], cosine.acos().mean().item<double>() / std::numbers::pi, 1e-9);
  }
  ASSERT_EQ(window.values.size(), 2U);
  EXPECT_NEAR(window.values[0], cosines(streams[0], streams[3]).mean().item<double>(), 1e-9);
  EXPECT_NEAR(window.values[1], cosines(streams[1], streams[4]).mean().item<double>(), 1e-9);
  EXPECT_EQ(lr.more_important, MoreImportant::kLow);
  EXPECT_EQ(bi.more_important, MoreImportant::kHigh);
  EXPECT_EQ(lim.more_important, MoreImportant::kHigh);
}

// HSIC_1 of two Gram matrices as Song et al. write it (2012, equation 5), sum by sum.
double hsic(const at::Tensor& k_full, const at::Tensor& l_full) {
  const at::Tensor k = k_full - k_full.diagonal().diag(), l = l_full - l_full.diagonal().diag();
  const auto n = static_cast<double>(k.size(0));
  const double trace = at::mm(k, l).trace().item<double>(), sums = k.sum().item<double>() * l.sum().item<double>();
  return (trace + sums / ((n - 1) * (n - 2)) - 2 / (n - 2) * at::mm(k, l).sum().item<double>()) / (n * (n - 3));
}

TEST_F(Scores, ByCkaAreTheAlignmentOfUnbiasedHsic) {
  const TokenWindows windows = random_windows(2, 100, 61);  // one minibatch a window
  const LayerWalk walk(model_, {.chunk_tokens = 100}, 100, no_progress());
  const auto streams = all_streams(walk, windows);
  const auto scores = score_layers(walk, windows, {parse_metric("cka")});
  const auto sum_of = [&](size_t i, size_t j) {
    double sum = 0;
    for (int64_t w = 0; w < 2; ++w) {
      const at::Tensor x = streams[i].narrow(0, 100 * w, 100), y = streams[j].narrow(0, 100 * w, 100);
      sum += hsic(at::mm(x, x.t()), at::mm(y, y.t()));
    }
    return sum;
  };
  const auto cka = [&](size_t i, size_t j) { return sum_of(i, j) / std::sqrt(sum_of(i, i) * sum_of(j, j)); };
  ASSERT_EQ(scores.values.size(), 4U);
  ASSERT_EQ(scores.matrix.size(), 4U);
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_NEAR(scores.values[i], cka(i, i + 1), 1e-5);
    for (size_t j = 0; j < 4; ++j) EXPECT_NEAR(scores.matrix[i][j], cka(i + 1, j + 1), 1e-5);
  }
  EXPECT_EQ(scores.more_important, MoreImportant::kLow);
}

TEST_F(Scores, ByCkaDoNotDependOnTheChunkSize) {
  const TokenWindows windows = random_windows(3, 130, 61);  // two minibatches a window
  const LayerWalk small(model_, {.chunk_tokens = 130}, 130, no_progress());
  const LayerWalk whole(model_, {.chunk_tokens = 1 << 20}, 130, no_progress());
  const auto a = score_layers(small, windows, {parse_metric("cka")});
  const auto b = score_layers(whole, windows, {parse_metric("cka")});
  for (size_t i = 0; i < 4; ++i) EXPECT_NEAR(a.values[i], b.values[i], 1e-6);
  EXPECT_THROW(score_layers(LayerWalk(model_, {}, 3, no_progress()), random_windows(3, 3, 61), {parse_metric("cka")}),
               Error);
}

TEST_F(Scores, AfterTheFinalNormDifferInTheLastLayerOnly) {
  const auto plain = score_layers(walk_, windows_, {parse_metric("lr"), false});
  const auto normed = score_layers(walk_, windows_, {parse_metric("lr"), true});
  const auto streams = all_streams(walk_, windows_);
  const at::Tensor after = final_norm(load_head(walk_), streams[4].to(at::kFloat)).to(at::kDouble);
  EXPECT_EQ(plain.values[2], normed.values[2]);
  EXPECT_NEAR(normed.values[3], cosines(streams[3], after).mean().item<double>(), 1e-6);
  EXPECT_NE(plain.values[3], normed.values[3]);
}

TEST_F(Scores, DoNotDependOnTheChunkSize) {
  const LayerWalk whole(model_, {.chunk_tokens = 1 << 20}, 16, no_progress());
  const auto a = score_layers(walk_, windows_, {parse_metric("lr")});
  const auto b = score_layers(whole, windows_, {parse_metric("lr")});
  for (size_t i = 0; i < a.values.size(); ++i) EXPECT_NEAR(a.values[i], b.values[i], 1e-6);
}

TEST_F(Scores, LeaveOutTokensOfNormZeroAndCountThem) {
  model_.at("model.embed_tokens.weight").select(0, 5).zero_();
  for (int32_t& id : windows_.ids) id = id == 5 ? 6 : id;
  windows_.ids[0] = windows_.ids[17] = 5;
  const auto scores = score_layers(walk_, windows_, {parse_metric("lr")});
  // A zero vector at position 0 stays zero until attention writes to it: at least layer 0 leaves both out.
  EXPECT_GE(scores.skipped_tokens, 2);
  EXPECT_TRUE(std::isfinite(scores.values[0]));
}

TEST_F(Scores, NameLayerAndTokenOfANaN) {
  model_.at("model.layers.2.mlp.down_proj.weight").fill_(1e38F);
  try {
    score_layers(walk_, windows_, {parse_metric("lr")});
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kBadInput);
    EXPECT_THAT(error.what(), ::testing::HasSubstr("layer 2, token"));
  }
}

TEST(ParseMetric, RefusesUnknownNames) {
  for (const char* name : {"", "LR", "window", "window:", "window:0", "window:-1", "window:2x", "cosine"}) {
    EXPECT_THROW(parse_metric(name), Error) << name;
  }
  EXPECT_EQ(parse_metric("window:12").window, 12);
}

TEST_F(Scores, AcrossLayersAreTheSameWithStreamsInTheScratchFile) {
  const testing::TemporaryFolder folder;
  // One of the two chunks of a stream fits into memory; the window's earlier streams are spilled.
  const auto store = std::make_shared<ActivationStore>(32 * 32 * 4, folder.path());
  const LayerWalk spilling(model_, {.chunk_tokens = 32, .activations = store}, 16, no_progress());
  for (const char* metric : {"lr", "window:3"}) {
    EXPECT_EQ(score_layers(spilling, windows_, {parse_metric(metric)}).values,
              score_layers(walk_, windows_, {parse_metric(metric)}).values);
  }
  EXPECT_GT(store->scratch_file_bytes(), 0U);
  EXPECT_EQ(store->bytes_in_memory(), 0U);
}

}  // namespace
}  // namespace dynslice
