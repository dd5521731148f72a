#include "dynslice/modular/modular.h"

#include <ATen/Parallel.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "aten.h"
#include "dynslice/support/error.h"
#include "unit/modular/compressed_models.h"
#include "unit/support/error_matchers.h"
#include "unit/support/tensors.h"

namespace dynslice {
namespace {

using testing::compressed;
using testing::largest_difference;
using testing::logits_of;
using testing::loss_of;
using testing::measured;
using testing::MemoryCheckpoint;
using testing::plan_of_sizes;
using testing::random_windows;
using testing::tiny_model;
using testing::TinyOptions;

constexpr int64_t kInner = 96;  // of the tiny model's MLPs

MemoryCheckpoint compress(const MemoryCheckpoint& model, const SlicePlan& plan, const TokenWindows& windows,
                          const ModularOptions& options = {}) {
  const LayerWalk walk(model, {.chunk_tokens = 64}, windows.length, no_progress());
  return compressed(model, plan, windows, measured(walk, windows), walk, options);
}

// Half of the neurons of every layer are copies of the others, in another order.
MemoryCheckpoint model_of_copies(const TinyOptions& options) {
  MemoryCheckpoint model = tiny_model(options);
  const at::Tensor order = at::randperm(kInner / 2, at::kLong);
  for (const TensorInfo& info : model.tensors()) {
    if (info.name.find("gate_proj") == std::string::npos && info.name.find("up_proj") == std::string::npos) continue;
    at::Tensor& values = model.at(info.name);
    values.narrow(0, kInner / 2, kInner / 2).copy_(values.narrow(0, 0, kInner / 2).index_select(0, order));
  }
  return model;
}

struct Kind {
  const char* name;
  TinyOptions options;
};

class ModularOfEveryKindOfModel : public ::testing::TestWithParam<Kind> {};

TEST_P(ModularOfEveryKindOfModel, KeepingAllNeuronsChangesNoBit) {
  const MemoryCheckpoint model = tiny_model(GetParam().options);
  const MemoryCheckpoint same =
      compress(model, plan_of_sizes(model.config(), {kInner, kInner, kInner}), random_windows(4, 16, 61));
  for (const TensorInfo& info : model.tensors()) {
    ASSERT_NE(same.find(info.name), nullptr) << info.name;
    EXPECT_TRUE(same.load(info.name, info.shape, at::kFloat).equal(model.load(info.name, info.shape, at::kFloat)))
        << info.name;
  }
}

TEST_P(ModularOfEveryKindOfModel, LosesNothingWhereHalfOfTheNeuronsAreCopies) {
  const MemoryCheckpoint model = model_of_copies(GetParam().options);
  const TokenWindows windows = random_windows(32, 16, 61);
  const at::Tensor before = logits_of(model, windows);
  for (const NeuronChoice choice : {NeuronChoice::kLoss}) {
    ModularOptions options;
    options.choice = choice;
    options.ridge = 1e-8;
    const MemoryCheckpoint smaller =
        compress(model, plan_of_sizes(model.config(), {kInner / 2, kInner / 2, 64}), windows, options);
    // fp32 weights and moments of fp32 products; the logits are of size 1 to 10.
    EXPECT_LT(largest_difference(logits_of(smaller, windows), before), 1e-2 * before.abs().max().item<double>());
  }
}

TEST_P(ModularOfEveryKindOfModel, ConsistsOfExactlyTheTensorsOfItsConfiguration) {
  const MemoryCheckpoint model = tiny_model(GetParam().options);
  const MemoryCheckpoint smaller =
      compress(model, plan_of_sizes(model.config(), {64, 40, kInner}), random_windows(8, 16, 61));
  testing::expect_tensors_of_configuration(smaller);
}

TEST_P(ModularOfEveryKindOfModel, LosesNothingWithHeadsThatAddNothing) {
  MemoryCheckpoint model = tiny_model(GetParam().options);
  // Of layer 0 the second key-value head and its two queries, of layer 1 the first query of either, of layer 2 all.
  const bool is_delta = GetParam().options.delta;
  const auto silence = [&](int64_t layer, int64_t first, int64_t count) {
    if (is_delta) return;
    const int64_t width = model.config().layers[static_cast<size_t>(layer)].head_dim;
    model.at(layer_tensor_name(layer, "self_attn.o_proj.weight")).narrow(1, width * first, width * count).zero_();
  };
  silence(0, 2, 2);
  silence(1, 0, 1);
  silence(1, 2, 1);
  silence(2, 0, 4);
  SlicePlan plan = plan_of_sizes(model.config(), {kInner, kInner, kInner});
  // A bias of the output would go with the last head.
  const bool shared = model.config().layers.front().num_key_value_heads == 2, biased = model.config().o_bias;
  plan.heads = {{2, shared ? 1 : 2}, {2, 2}, biased ? HeadCount{1, 1} : HeadCount{}};
  const TokenWindows windows = random_windows(16, 16, 61);
  if (GetParam().options.olmo || is_delta) {  // see Architecture::can_remove_heads
    EXPECT_THROW((void)compress(model, plan, windows), Error);
    return;
  }
  const MemoryCheckpoint smaller = compress(model, plan, windows);
  testing::expect_tensors_of_configuration(smaller);
  const at::Tensor before = logits_of(model, windows);
  EXPECT_LT(largest_difference(logits_of(smaller, windows), before), 1e-3 * before.abs().max().item<double>());
}

INSTANTIATE_TEST_SUITE_P(
    Modular, ModularOfEveryKindOfModel,
    ::testing::Values(Kind{"Untied", {}}, Kind{"Tied", {.tied = true}}, Kind{"QkvBias", {.qkv_bias = true}},
                      Kind{"AllBiases", {.tied = true, .all_biases = true}}, Kind{"HeadNorms", {.head_norms = true}},
                      Kind{"Gemma", {.tied = true, .gemma = true}}, Kind{"Gemma4", {.gemma4 = true}},
                      Kind{"Olmo", {.olmo = true}}, Kind{"Granite", {.granite = true}}, Kind{"Opt", {.opt = true}},
                      Kind{"Delta", {.delta = true}}),
    [](const auto& instance) { return instance.param.name; });

// Gemma 3's norms behind MLPs have weights from 0 to 200 in one layer.
TEST(Modular, ARefitTowardsTheDenseStreamBearsNormsWithWeightsThatAreNextToNothing) {
  MemoryCheckpoint model = tiny_model({.hidden_size = 32, .layers = 3, .gemma = true});
  for (const int64_t layer : {1, 2}) {  // behind one that leaves errors in all channels
    at::Tensor& weights = model.at(layer_tensor_name(layer, "post_mlp_layernorm.weight"));
    weights.narrow(0, 0, 12).mul_(1e-3);
    weights.narrow(0, 0, 1).zero_();
  }
  const TokenWindows windows = random_windows(64, 16, 61);
  const at::Tensor before = logits_of(model, windows);
  const SlicePlan plan = plan_of_sizes(model.config(), {72, 72, 72});
  const auto error = [&](ModularRefit refit) {
    const MemoryCheckpoint smaller = compress(model, plan, windows, {.refit = refit});
    return (logits_of(smaller, windows) - before).square().mean().item<double>();
  };
  const double self = error(ModularRefit::kSelf);
  EXPECT_LT(error(ModularRefit::kDense), 1.1 * self);
  EXPECT_LT(error(ModularRefit::kAll), 1.1 * self);
}

TEST(Modular, IsOrdinaryWhenAllLayersKeepAsMuch) {
  const ModelConfig config = tiny_model().config();
  EXPECT_TRUE(sliced_config(config, plan_of_sizes(config, {64, 64, 64})).is_ordinary());
  EXPECT_FALSE(sliced_config(config, plan_of_sizes(config, {64, 56, 64})).is_ordinary());
}

// On the calibration text itself a refit that sees the dense stream cannot be worse than none at all by much, and
// removing at random is far worse than removing what costs least.
TEST(Modular, KeepsTheDenseModelsLogitsBetterThanRemovingTheFirstNeurons) {
  const MemoryCheckpoint model = tiny_model({.hidden_size = 32, .layers = 3});
  const TokenWindows windows = random_windows(64, 16, 61);
  const at::Tensor before = logits_of(model, windows);
  const SlicePlan plan = plan_of_sizes(model.config(), {72, 72, 72});
  MemoryCheckpoint cut(sliced_config(model.config(), plan));
  for (const OutputTensor& tensor : checkpoint_tensors(cut.config(), at::kFloat)) {
    const at::Tensor whole = model.load(tensor.name, model.find(tensor.name)->shape, at::kFloat);
    const bool by_columns = tensor.name.find("down_proj") != std::string::npos;
    cut.put(tensor.name, by_columns ? whole.narrow(1, 0, tensor.shape[1]) : whole.narrow(0, 0, tensor.shape[0]));
  }
  const double careless = (logits_of(cut, windows) - before).square().mean().item<double>();
  for (const ModularRefit refit : {ModularRefit::kSelf, ModularRefit::kDense, ModularRefit::kAll}) {
    ModularOptions options;
    options.refit = refit;
    const double careful =
        (logits_of(compress(model, plan, windows, options), windows) - before).square().mean().item<double>();
    EXPECT_LT(careful, 0.5 * careless) << static_cast<int>(refit);
  }
}

TEST(Modular, RefittingTowardsTheDenseStreamComesNearerToIt) {
  const MemoryCheckpoint model = tiny_model({.layers = 4});
  const TokenWindows windows = random_windows(96, 16, 61);
  const at::Tensor before = logits_of(model, windows);
  const SlicePlan plan = plan_of_sizes(model.config(), {48, 48, 48, 48});
  const auto error = [&](ModularRefit refit) {
    ModularOptions options;
    options.refit = refit;
    return (logits_of(compress(model, plan, windows, options), windows) - before).square().mean().item<double>();
  };
  EXPECT_LT(error(ModularRefit::kDense), error(ModularRefit::kSelf));
  EXPECT_LT(error(ModularRefit::kAll), error(ModularRefit::kDense));
}

TEST(Modular, TellsTheLossOfTheModelThatItMakes) {
  const MemoryCheckpoint model = tiny_model();
  const TokenWindows windows = random_windows(8, 16, 61), held_out = random_windows(4, 16, 61, 11);
  const SlicePlan plan = plan_of_sizes(model.config(), {64, 48, 80});
  const LayerWalk walk(model, {.chunk_tokens = 64}, windows.length, no_progress());
  SensitivitySource sensitivity;
  const ModularResult result = compress_layers(walk, plan, windows, sensitivity, {}, {}, &held_out);
  const MemoryCheckpoint smaller = compressed(model, plan, windows, {}, walk, {});
  EXPECT_NEAR(*result.held_out_loss, loss_of(smaller, held_out), 1e-5);
}

TEST(Modular, DoesNotDependOnThreadsBeyondRounding) {
  const MemoryCheckpoint model = tiny_model();
  const TokenWindows windows = random_windows(16, 16, 61);
  const SlicePlan plan = plan_of_sizes(model.config(), {64, 40, 72});
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  const MemoryCheckpoint one = compress(model, plan, windows);
  at::set_num_threads(2);
  const MemoryCheckpoint two = compress(model, plan, windows);
  at::set_num_threads(threads);
  for (const TensorInfo& info : one.tensors()) {
    // Products may be summed in another order: the rounding of fp32, on values of size 1.
    EXPECT_LT(
        largest_difference(one.load(info.name, info.shape, at::kFloat), two.load(info.name, info.shape, at::kFloat)),
        1e-3)
        << info.name;
  }
}

// The gradients of a whole model by differences: the loss of a model whose layer adds a little more.
TEST(Sensitivity, IsThatOfTheLossToWhatALayerAdds) {
  TinyOptions options{.layers = 2, .all_biases = true};
  MemoryCheckpoint model = tiny_model(options);
  const TokenWindows windows = random_windows(1, 2, 61);  // the one loss is that of the second token
  const LayerWalk walk(model, {}, windows.length, no_progress());
  const Sensitivity found = measure_sensitivity(walk, windows, 1);
  // One token has a gradient beside the first: G sums two outer products, of which the bias sees the sum of gradients.
  constexpr double kStep = 1e-2;
  for (const auto& [place, name] : {std::pair{0, "self_attn.o_proj.bias"}, std::pair{1, "mlp.down_proj.bias"}}) {
    at::Tensor gradient = at::empty({32}, at::kDouble);
    at::Tensor& value = model.at(layer_tensor_name(1, name));
    for (int64_t i = 0; i < 32; ++i) {
      value[i] += kStep;
      const double above = loss_of(model, windows);
      value[i] -= 2 * kStep;
      const double below = loss_of(model, windows);
      value[i] += kStep;
      gradient[i] = (above - below) / (2 * kStep);
    }
    // Behind the last attention only the first token's stream bears on the loss: one outer product.
    const at::Tensor expected = at::outer(gradient, gradient) / gradient.square().sum();
    EXPECT_LT(largest_difference(found.directions[1][place].to(at::kDouble), expected), 2e-2) << name;
    EXPECT_NEAR(found.sizes[1][place].item<double>(), gradient.square().sum().item<double>() / 2, 2e-2) << name;
  }
}

TEST(Sensitivity, DoesNotDependOnTurns) {
  const MemoryCheckpoint model = tiny_model({.tied = true});
  const TokenWindows windows = random_windows(6, 16, 61);
  const LayerWalk walk(model, {.chunk_tokens = 32}, windows.length, no_progress());
  const Sensitivity whole = measure_sensitivity(walk, windows, int64_t{1} << 30);
  const Sensitivity in_turns = measure_sensitivity(walk, windows, 1);
  EXPECT_LT(largest_difference(whole.directions, in_turns.directions), 1e-5);
  EXPECT_LT(largest_difference(whole.sizes, in_turns.sizes), 1e-5 * whole.sizes.max().item<double>());
}

TEST(LossCurves, RiseFromZero) {
  const MemoryCheckpoint model = tiny_model();
  const TokenWindows windows = random_windows(8, 16, 61);
  const LayerWalk walk(model, {.chunk_tokens = 64}, windows.length, no_progress());
  SensitivitySource sensitivity = measured(walk, windows);
  const std::vector<LayerCurves> curves = measure_loss_curves(walk, windows, sensitivity, {.heads = true}, 20);
  ASSERT_EQ(curves.size(), 3U);
  for (const LayerCurves& layer : curves) {
    EXPECT_EQ(layer.neurons.sizes.back(), 3 * 32 * (kInner - 20));
    // Of 4 heads over 2 key-value heads: in the end none is left, but in the first layer.
    EXPECT_EQ(layer.counts.front(), (HeadCount{4, 2}));
    EXPECT_EQ(layer.counts.back(), &layer == &curves.front() ? (HeadCount{1, 1}) : HeadCount{});
    const int64_t left = layer.counts.back().heads + layer.counts.back().kv_heads;
    EXPECT_EQ(layer.heads.sizes.back(), 2 * (4 + 2 - left) * 8 * 32);
    for (const LossCurve& curve : {layer.neurons, layer.heads}) {
      EXPECT_EQ(curve.losses.front(), 0.0);
      EXPECT_EQ(curve.losses.size(), curve.sizes.size());
      EXPECT_TRUE(std::ranges::is_sorted(curve.losses));
      EXPECT_TRUE(std::ranges::is_sorted(curve.sizes));
    }
  }
}

TEST(LossCurves, HeadsCountWithCaution) {
  const MemoryCheckpoint model = tiny_model();
  const TokenWindows windows = random_windows(8, 16, 61);
  const LayerWalk walk(model, {.chunk_tokens = 64}, windows.length, no_progress());
  SensitivitySource sensitivity = measured(walk, windows);
  const auto with_caution = [&](double caution) {
    ModularOptions options;
    options.head_caution = caution;
    return measure_loss_curves(walk, windows, sensitivity, options, 20);
  };
  const std::vector<LayerCurves> once = with_caution(1), four_times = with_caution(4);
  for (size_t layer = 0; layer < once.size(); ++layer) {
    const double heads = once[layer].heads.losses.back(), neurons = once[layer].neurons.losses.back();
    EXPECT_GT(heads, 0.0);
    EXPECT_NEAR(four_times[layer].heads.losses.back(), 4 * heads, 1e-6 * heads);
    EXPECT_NEAR(four_times[layer].neurons.losses.back(), neurons, 1e-6 * neurons);
  }
}

TEST(LossCurves, FewGradientsAskForMoreCaution) {
  const MemoryCheckpoint model = tiny_model();
  const auto curves = [&](int64_t count, std::optional<double> caution) {
    const TokenWindows windows = random_windows(count, 16, 61);
    const LayerWalk walk(model, {.chunk_tokens = 64}, windows.length, no_progress());
    SensitivitySource sensitivity = measured(walk, windows);
    ModularOptions options;
    options.head_caution = caution;
    return measure_loss_curves(walk, windows, sensitivity, options, 20);
  };
  for (const auto& [windows, caution] : {std::pair(15, 4.0), std::pair(16, 2.0)}) {
    const double by_default = curves(windows, std::nullopt).back().heads.losses.back();
    EXPECT_NEAR(by_default, curves(windows, caution).back().heads.losses.back(), 1e-9 * by_default) << windows;
  }
}

TEST(Modular, RefusesMlpsOfDifferentSizes) {
  const ModelConfig config = tiny_model().config();
  const MemoryCheckpoint model = testing::random_model(sliced_config(config, plan_of_sizes(config, {64, 56, 64})));
  EXPECT_THROW(check_modular(model), Error);
}

}  // namespace
}  // namespace dynslice
