#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "dynslice/checkpoint/modeling_files.h"
#include "dynslice/checkpoint/open_checkpoint.h"
#include "dynslice/depth/drop.h"
#include "dynslice/depth/merge.h"
#include "dynslice/depth/repair.h"
#include "dynslice/depth/replacement.h"
#include "dynslice/depth/shallow_losses.h"
#include "dynslice/support/error.h"
#include "dynslice/support/files.h"
#include "dynslice/walk/head.h"
#include "tiny_model.h"
#include "unit/support/temporary_folder.h"

namespace dynslice {
namespace {

using testing::all_streams;
using ::testing::ElementsAre;
using testing::MemoryCheckpoint;
using testing::random_model;
using testing::random_windows;
using testing::tiny_config;
using testing::tiny_model;
using testing::TinyOptions;

constexpr int64_t kLength = 16;

JournalPhase no_journal(const std::string&) { return {}; }

// Loss of the checkpoint as it is, by the plain walk.
double plain_loss(const Checkpoint& checkpoint, const TokenWindows& windows) {
  const LayerWalk walk(checkpoint, {}, windows.length, no_progress());
  ResidualStream stream = walk.embed(windows);
  run_dense(walk, "test", stream);
  return next_token_losses(walk, load_head(walk), stream, windows, "test").mean().item<double>();
}

// The model with layers of `kept` alone, put together by hand.
MemoryCheckpoint keep_layers(const MemoryCheckpoint& source, const std::vector<int64_t>& kept) {
  ModelConfig config = source.config();
  config.layers.resize(kept.size());
  MemoryCheckpoint result(config);
  for (const OutputTensor& tensor : checkpoint_tensors(config, at::kFloat)) {
    std::string from = tensor.name;
    for (size_t i = 0; i < kept.size(); ++i) {
      const std::string prefix = layer_tensor_name(static_cast<int64_t>(i), "");
      if (tensor.name.starts_with(prefix)) from = layer_tensor_name(kept[i], tensor.name.substr(prefix.size()));
    }
    result.put(tensor.name, source.load(from, tensor.shape, at::kFloat));
  }
  return result;
}

// Layers that add nothing to the stream.
void silence(MemoryCheckpoint& model, const std::vector<int64_t>& layers) {
  for (const int64_t layer : layers) {
    for (const char* writer : {"self_attn.o_proj.weight", "mlp.down_proj.weight"})
      model.at(layer_tensor_name(layer, writer)).zero_();
  }
}

class Depth : public ::testing::Test {
 protected:
  MemoryCheckpoint model_ = tiny_model({.layers = 6});
  TokenWindows windows_ = random_windows(3, kLength, 61);
  LayerWalk walk_{model_, {.chunk_tokens = 32}, kLength, no_progress()};
};

// What was written for `plan`, read again.
std::unique_ptr<Checkpoint> written(const Checkpoint& source, const DepthPlan& plan, const std::filesystem::path& out) {
  const ModelConfig config = depth_config(source.config(), plan);
  CheckpointWriter writer(out, checkpoint_tensors(config, at::kFloat), false);
  write_depth(source, plan, at::kFloat, writer, no_progress());
  writer.write_text("config.json", to_text(write_config(config, "float32")));
  writer.commit();
  return open_checkpoint(out);
}

TEST(DepthPlan, WithoutLayersNamesWhatDoesNotExist) {
  EXPECT_THAT(plan_without(4, {2, 0}).layers, ElementsAre(ElementsAre(1), ElementsAre(3)));
  EXPECT_THROW(plan_without(4, {4}), Error);
  EXPECT_THROW(plan_without(4, {-1}), Error);
  EXPECT_THROW(plan_without(2, {0, 1}), Error);
}

TEST(DepthPlan, KeepsTheSlidingKindOfEveryLayer) {
  ModelConfig config = tiny_config({.layers = 4});
  config.layer_is_sliding = {true, false, true, false};
  EXPECT_THAT(depth_config(config, plan_without(4, {0})).layer_is_sliding, ElementsAre(false, true, false));
}

TEST_F(Depth, DroppingNoLayerWritesTheSameModel) {
  const testing::TemporaryFolder folder;
  const auto copy = written(model_, plan_without(6, {}), folder.path() / "out");
  for (const TensorInfo& tensor : model_.tensors()) {
    EXPECT_TRUE(at::equal(copy->load(tensor.name, tensor.shape, at::kFloat),
                          model_.load(tensor.name, tensor.shape, at::kFloat)))
        << tensor.name;
  }
  EXPECT_EQ(shallow_losses(walk_, windows_, {plan_without(6, {})})[0], plain_loss(model_, windows_));
}

TEST_F(Depth, LossesOfManyModelsInOneWalkAreThoseOfEachAlone) {
  const std::vector<std::vector<int64_t>> kept = {{0, 1, 2, 3, 4, 5}, {1, 2, 3, 4, 5}, {0, 1, 4, 5}, {0, 2, 4}, {5}};
  std::vector<DepthPlan> plans(kept.size());
  for (size_t i = 0; i < kept.size(); ++i) {
    for (const int64_t layer : kept[i]) plans[i].layers.push_back({layer});
  }
  const std::vector<double> losses = shallow_losses(walk_, windows_, plans);
  for (size_t i = 0; i < kept.size(); ++i)
    EXPECT_NEAR(losses[i], plain_loss(keep_layers(model_, kept[i]), windows_), 1e-6);
}

TEST_F(Depth, DroppingByLossTakesTheBestOfAllEveryTime) {
  const auto trials = drop_by_loss(walk_, windows_, 3, no_journal);
  std::vector<int64_t> left = {0, 1, 2, 3, 4, 5};
  for (const DropTrial& trial : trials) {
    double best = 1e9;
    int64_t best_layer = -1;
    for (const int64_t layer : left) {
      std::vector<int64_t> rest = left;
      std::erase(rest, layer);
      const double loss = plain_loss(keep_layers(model_, rest), windows_);
      if (loss < best) best_layer = layer, best = loss;
    }
    EXPECT_EQ(trial.layer, best_layer);
    EXPECT_NEAR(trial.loss, best, 1e-6);
    std::erase(left, trial.layer);
  }
}

TEST(Drop, LeastImportantFollowsTheScoresOwnDirection) {
  LayerScores scores;
  scores.values = {0.3, 0.1, 0.2, 0.1};
  scores.more_important = MoreImportant::kHigh;
  EXPECT_THAT(least_important(scores, 2), ElementsAre(1, 3));
  EXPECT_THAT(least_important(scores, 1), ElementsAre(3));  // of equal ones the higher goes first
  scores.more_important = MoreImportant::kLow;
  EXPECT_THAT(least_important(scores, 2), ElementsAre(0, 2));
}

class MergeRules : public Depth {
 protected:
  // One tensor of the written model that merges layers 1 to 3.
  at::Tensor merged(MergeRule rule, const std::string& suffix) {
    const testing::TemporaryFolder folder;
    const auto out = written(model_, {{{0}, {1, 2, 3}, {4}, {5}}, rule, {}}, folder.path() / "out");
    return out->load(layer_tensor_name(1, suffix), out->find(layer_tensor_name(1, suffix))->shape, at::kFloat);
  }
  at::Tensor source(int64_t layer, const std::string& suffix) { return model_.at(layer_tensor_name(layer, suffix)); }
};

TEST_F(MergeRules, AreThoseOfThePaperAndItsCode) {
  for (const char* suffix : {"mlp.up_proj.weight", "self_attn.k_proj.weight", "input_layernorm.weight"}) {
    const at::Tensor a = source(1, suffix), b = source(2, suffix), c = source(3, suffix);
    EXPECT_TRUE(at::allclose(merged(MergeRule::kSum, suffix), a + (b - a) + (c - a), 0, 1e-5)) << suffix;
    EXPECT_TRUE(at::allclose(merged(MergeRule::kMean, suffix), (a + b + c) / 3, 0, 1e-5)) << suffix;
    EXPECT_TRUE(at::equal(merged(MergeRule::kLast, suffix), c)) << suffix;
  }
}

TEST_F(MergeRules, GiveTheSameLayerInMemoryAsOnTheDisk) {
  for (const MergeRule rule : {MergeRule::kSum, MergeRule::kMean, MergeRule::kLast}) {
    const testing::TemporaryFolder folder;
    const auto out = written(model_, {{{0}, {1, 2, 3}, {4}, {5}}, rule, {}}, folder.path() / "out");
    const DecoderLayer from_disk = load_decoder_layer(*out, 1, at::kFloat, at::kCPU);
    const DecoderLayer in_memory = merge_layers(
        rule, {1, 2, 3}, [&](int64_t layer) { return load_decoder_layer(model_, layer, at::kFloat, at::kCPU); });
    EXPECT_TRUE(at::equal(from_disk.qkv.weight, in_memory.qkv.weight));
    EXPECT_TRUE(at::equal(from_disk.gate_up.weight, in_memory.gate_up.weight));
    EXPECT_TRUE(at::equal(from_disk.input_norm, in_memory.input_norm));
  }
}

TEST_F(MergeRules, MergingALayerWithItselfUnderTheMeanIsTheIdentity) {
  const DecoderLayer layer = load_decoder_layer(model_, 2, at::kFloat, at::kCPU);
  const DecoderLayer merged = merge_layers(
      MergeRule::kMean, {2, 2}, [&](int64_t k) { return load_decoder_layer(model_, k, at::kFloat, at::kCPU); });
  EXPECT_TRUE(at::equal(layer.qkv.weight, merged.qkv.weight));
  EXPECT_TRUE(at::equal(layer.down_proj.weight, merged.down_proj.weight));
  EXPECT_TRUE(at::equal(layer.post_attention_norm, merged.post_attention_norm));
}

TEST_F(Depth, MergingFindsTheLayersThatDoNothing) {
  silence(model_, {2, 3, 4});
  // Silent layers sum up to a silent one, at a cosine of 1; with layer 1 among them it is another model.
  const MergeResult result = merge_by_sliding(walk_, windows_, {MergeRule::kSum, 0.9999, {}}, no_journal);
  EXPECT_THAT(result.plan.layers, ElementsAre(ElementsAre(0), ElementsAre(1), ElementsAre(2, 3, 4), ElementsAre(5)));
  EXPECT_NEAR(result.cosine, 1, 1e-6);
  EXPECT_LT(result.layers_run, result.layers_if_whole);
}

TEST_F(Depth, MergingMeasuresTheCosineOfFinalHiddenStates) {
  const MergeResult result = merge_by_sliding(walk_, windows_, {MergeRule::kMean, -1.0, {}}, no_journal);
  ASSERT_EQ(result.trials.size(), 4U);  // 3-4, 2-4, 1-4, 0-4: nothing is too far
  EXPECT_THAT(result.plan.layers, ElementsAre(ElementsAre(0, 1, 2, 3, 4), ElementsAre(5)));
  const Head head = load_head(walk_);
  const auto final_states = [&](const Checkpoint& checkpoint) {
    const LayerWalk walk(checkpoint, {}, kLength, no_progress());
    ResidualStream stream = walk.embed(windows_);
    run_dense(walk, "test", stream);
    return final_norm(head, stream.gather()).flatten(1).to(at::kDouble);
  };
  const testing::TemporaryFolder folder;
  const auto out = written(model_, result.plan, folder.path() / "out");
  const at::Tensor expected = at::cosine_similarity(final_states(model_), final_states(*out), 1, 1e-12).mean();
  EXPECT_NEAR(result.trials.back().cosine, expected.item<double>(), 1e-5);
}

TEST_F(Depth, MergingReachesTheTargetAtTheHighestThreshold) {
  const MergeResult result = merge_by_sliding(walk_, windows_, {MergeRule::kMean, 0, 4}, no_journal);
  EXPECT_EQ(result.plan.layers.size(), 4U);
  const auto layers_at = [&](double threshold) {
    return merge_by_sliding(walk_, windows_, {MergeRule::kMean, threshold, {}}, no_journal).plan.layers.size();
  };
  EXPECT_LE(layers_at(result.threshold - 1e-3), 4U);
  EXPECT_GT(layers_at(result.threshold + 1e-3), 4U);
  EXPECT_THROW(merge_by_sliding(walk_, windows_, {MergeRule::kMean, 0, 7}, no_journal), Error);
  EXPECT_THROW(merge_by_sliding(walk_, windows_, {MergeRule::kMean, 0, 1}, no_journal), Error);  // the last layer stays
}

TEST_F(Depth, RepairOfLayersThatDoNothingIsTheIdentity) {
  silence(model_, {2, 3});
  for (const bool on_stream : {false, true}) {
    const auto repairs = fit_repairs(walk_, windows_, {2}, 2, {on_stream, 1e-3});
    EXPECT_EQ(repairs[0].layer, 1);
    EXPECT_TRUE(at::allclose(repairs[0].map, at::eye(32), 0, 1e-6));
  }
}

TEST_F(Depth, RepairSolvesTheWeightedLeastSquares) {
  constexpr double kRidge = 0.05;
  const TokenWindows windows = random_windows(6, kLength, 61);
  const auto x = all_streams(walk_, windows);
  const auto repairs = fit_repairs(walk_, windows, {1, 2, 3}, 2, {true, kRidge});
  for (size_t i = 0; i < repairs.size(); ++i) {
    const int64_t start = static_cast<int64_t>(i) + 1;
    const at::Tensor entered = x[static_cast<size_t>(start)], left = x[static_cast<size_t>(start + 2)];
    const at::Tensor root = left.norm(2, 1, true).reciprocal();
    // The ridge as further rows of an ordinary least squares problem: √λ A = √λ I.
    const at::Tensor weighted = entered * root;
    const double lambda = kRidge * (weighted * weighted).sum().item<double>() / 32;
    const at::Tensor pull = at::eye(32, at::kDouble) * std::sqrt(lambda);
    const at::Tensor expected =
        std::get<0>(at::linalg_lstsq(at::cat({weighted, pull}), at::cat({left * root, pull}))).t();
    EXPECT_TRUE(at::allclose(repairs[i].map.to(at::kDouble), expected, 0, 1e-3));
  }
}

TEST_F(Depth, RepairsComeCloserToTheStreamThanNothingDoes) {
  const auto streams = all_streams(walk_, windows_);
  const double cut = shallow_losses(walk_, windows_, {plan_without_window(6, 2, 2, {})})[0];
  const double dense = plain_loss(model_, windows_);
  for (const bool on_stream : {false, true}) {
    const auto repairs = fit_repairs(walk_, windows_, {2}, 2, {on_stream, 1e-4});
    const double repaired_loss = shallow_losses(walk_, windows_, {plan_without_window(6, 2, 2, repairs[0])})[0];
    EXPECT_LT(std::abs(repaired_loss - dense), std::abs(cut - dense));
  }
}

TEST_F(Depth, AWrittenRepairIsTheOneThatWasMeasured) {
  for (const bool on_stream : {false, true}) {
    const DepthPlan plan = plan_without_window(6, 3, 2, fit_repairs(walk_, windows_, {3}, 2, {on_stream, 1e-3})[0]);
    const testing::TemporaryFolder folder;
    const auto out = written(model_, plan, folder.path() / "out");
    EXPECT_EQ(out->config().is_ordinary(), !on_stream);
    EXPECT_NEAR(plain_loss(*out, windows_), shallow_losses(walk_, windows_, {plan})[0], 1e-5);
  }
}

TEST_F(Depth, RepairsNeedALayerInFrontAndEnoughBehind) {
  EXPECT_THROW(fit_repairs(walk_, windows_, {0}, 2, {}), Error);
  EXPECT_THROW(fit_repairs(walk_, windows_, {5}, 2, {}), Error);
  EXPECT_EQ(fit_repairs(walk_, windows_, {4}, 2, {}).size(), 1U);
}

TEST(DepthOfSlicedModels, IsRefused) {
  ModelConfig config = tiny_config({.layers = 2});
  config.layers[0].mlp_shortcut = {ShortcutKind::kMatrix, 0};
  const MemoryCheckpoint sliced = random_model(config);
  EXPECT_THROW(check_depth(sliced), Error);
}

// ---- Trained replacements

ReplacementOptions some_replacing(ReplacementLoss loss, int64_t updates) {
  ReplacementOptions options;
  options.loss = loss;
  options.held_out = 4;
  options.training.updates = updates;
  options.training.batch = 4;
  options.training.micro_batch = 2;
  options.training.learning_rate = 3e-3;
  return options;
}

TEST(Replacement, AnUngatedMlpStartsAsNoChangeOfTheStream) {
  const MemoryCheckpoint model = tiny_model({.layers = 1});
  const LayerContext context = make_layer_context(model.config(), kLength, at::kCPU);
  const DecoderLayer ffn =
      initial_replacement(ReplacementKind::kFfn, load_decoder_layer(model, 0, at::kFloat, at::kCPU));
  const at::Tensor x = at::randn({1, kLength, 32});
  EXPECT_TRUE(at::equal(forward_layer(ffn, context, x), x));
}

TEST(Replacement, OfOneLayerByItselfIsTheSameModel) {
  const testing::TemporaryFolder folder;
  const MemoryCheckpoint model = tiny_model({.layers = 3});
  const DecoderLayer layer =
      initial_replacement(ReplacementKind::kLayer, load_decoder_layer(model, 1, at::kFloat, at::kCPU));
  const auto copy = written(model, plan_with_replacement(3, 1, 1, {1, layer}), folder / "out");
  for (const TensorInfo& tensor : model.tensors()) {
    EXPECT_TRUE(at::equal(copy->load(tensor.name, tensor.shape, at::kFloat),
                          model.load(tensor.name, tensor.shape, at::kFloat)));
  }
}

class TrainedReplacements : public ::testing::TestWithParam<std::tuple<ReplacementKind, ReplacementLoss>> {};

// Layers 1 to 3 of 6 become one.
TEST_P(TrainedReplacements, LearnAndAreWrittenAsTheyWereMeasured) {
  const auto [kind, loss] = GetParam();
  const testing::TemporaryFolder folder;
  const MemoryCheckpoint model = tiny_model({.layers = 6});
  const TokenWindows windows = random_windows(24, kLength, 61);
  const LayerWalk walk(model, {.chunk_tokens = 64}, kLength, no_progress());
  const DecoderLayer initial = initial_replacement(kind, load_decoder_layer(model, 1, at::kFloat, at::kCPU));
  const TrainedReplacement trained = train_replacement(walk, windows, 1, 3, initial, some_replacing(loss, 60));
  const double first = trained.result.points.front().validation_loss;
  double best = first;
  for (const TrainingPoint& point : trained.result.points) best = std::min(best, point.validation_loss);
  EXPECT_LT(best, first);

  const DepthPlan plan = plan_with_replacement(6, 1, 3, trained.replacement);
  const auto result = written(model, plan, folder / "out");
  EXPECT_EQ(result->config().num_layers(), 4);
  const TokenWindows held_out = windows.part(20, 4);
  if (loss == ReplacementLoss::kLanguageModel) {
    EXPECT_NEAR(plain_loss(*result, held_out), best, 1e-4);
    return;
  }
  const LayerWalk other(*result, {}, kLength, no_progress());
  const at::Tensor expected = all_streams(walk, held_out)[4], found = all_streams(other, held_out)[2];
  EXPECT_NEAR(((found - expected).square().sum(-1) / expected.square().sum(-1)).mean().item<double>(), best, 1e-4);
}

INSTANTIATE_TEST_SUITE_P(
    Kinds, TrainedReplacements,
    ::testing::Combine(::testing::Values(ReplacementKind::kLayer, ReplacementKind::kSwiglu, ReplacementKind::kFfn),
                       ::testing::Values(ReplacementLoss::kStream, ReplacementLoss::kLanguageModel)));

TEST(Replacement, LearnsTheLayersThatItKnows) {
  // Layers 2 and 3 add nothing, so that layer 1 alone does what the three did: there is nothing to learn, and a small
  // disturbance of it is taken back.
  MemoryCheckpoint model = tiny_model({.layers = 5});
  silence(model, {2, 3});
  const TokenWindows windows = random_windows(68, kLength, 61);
  const LayerWalk walk(model, {}, kLength, no_progress());
  DecoderLayer layer = load_decoder_layer(model, 1, at::kFloat, at::kCPU);
  ReplacementOptions options = some_replacing(ReplacementLoss::kStream, 300);
  options.training.learning_rate = 1e-3;
  const auto exact = train_replacement(walk, windows, 1, 3, layer, options);
  EXPECT_LT(exact.result.points.front().validation_loss, 1e-9);
  at::manual_seed(2);
  layer.down_proj.weight = layer.down_proj.weight + at::randn_like(layer.down_proj.weight) * 0.02;
  const auto trained = train_replacement(walk, windows, 1, 3, layer, options);
  EXPECT_LT(trained.result.points.back().validation_loss, 0.1 * trained.result.points.front().validation_loss);
}

TEST(Replacement, StreamsMayBeKeptInBf16) {
  const MemoryCheckpoint model = tiny_model({.layers = 4});
  const TokenWindows windows = random_windows(12, kLength, 61);
  const LayerWalk walk(model, {}, kLength, no_progress());
  const DecoderLayer initial = load_decoder_layer(model, 1, at::kFloat, at::kCPU);
  ReplacementOptions options = some_replacing(ReplacementLoss::kStream, 4);
  const auto fp32 = train_replacement(walk, windows, 1, 2, initial, options);
  options.stream_dtype = at::kBFloat16;
  const auto bf16 = train_replacement(walk, windows, 1, 2, initial, options);
  EXPECT_NEAR(bf16.result.points.back().validation_loss / fp32.result.points.back().validation_loss, 1, 0.02);
}

}  // namespace
}  // namespace dynslice
