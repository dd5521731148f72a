#include "dynslice/train/trainable_layer.h"

#include <c10/core/GradMode.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <functional>

#include "aten.h"
#include "dynslice/heal/lora.h"
#include "dynslice/train/objectives.h"
#include "tiny_model.h"

namespace dynslice {
namespace {

using testing::random_model;
using testing::tiny_config;
using testing::TinyOptions;

constexpr int64_t kLength = 12;

// A shape to try: the layers that dynslice writes differ in these.
struct Kind {
  const char* name;
  std::function<void(LayerShape&)> change;
  std::function<void(ModelConfig&)> change_model = [](ModelConfig&) {};
};

const Kind kKinds[] = {
    {"Dense", [](LayerShape&) {}},
    {"HeadNorms", [](LayerShape& shape) { shape.query_key_norm = QueryKeyNorm::kHead; }},
    {"RotatedHeadNorms", [](LayerShape& shape) { shape.query_key_norm = QueryKeyNorm::kRotatedHead; }},
    {"BranchNorms", [](LayerShape& shape) { shape.has_branch_norms = true; }},
    {"KeysForValues",
     [](LayerShape& shape) {
       shape.query_key_norm = QueryKeyNorm::kHead;
       shape.has_values = false;
       shape.has_value_norm = shape.has_layer_scale = true;
     },
     [](ModelConfig& config) { config.rope.turning_share = 0.5; }},
    {"NormsBehindAlone",
     [](LayerShape& shape) {
       shape.query_key_norm = QueryKeyNorm::kWhole;
       shape.has_input_norms = false;
       shape.has_branch_norms = true;
     }},
    {"LayerNorms", [](LayerShape& shape) { shape.is_gated = false; },
     [](ModelConfig& config) {
       config.has_centred_norms = config.mlp_bias = true;
       config.activation = Activation::kGeluTanh;  // ReLU has no gradient where it turns
     }},
    {"DeltaNet", [](LayerShape& shape) { shape.delta = {2, 4, 6, 5, 4}; }},
    {"OutputGates", [](LayerShape& shape) { shape.has_output_gate = true; }},
    {"ScaledBranches", [](LayerShape&) {}, [](ModelConfig& config) { config.branch_scale = 0.3; }},
    {"CappedScores", [](LayerShape&) {},
     [](ModelConfig& config) {
       config.score_cap = 0.5;
       config.sliding_window = 5;
     }},
    {"PartOfAHeadRotated", [](LayerShape&) {}, [](ModelConfig& config) { config.rotary_dim = 4; }},
    {"NeighboursRotated", [](LayerShape&) {},
     [](ModelConfig& config) {
       config.rotary_dim = 6;
       config.rotary_is_interleaved = true;
     }},
    {"GrowingQueries", [](LayerShape&) {},
     [](ModelConfig& config) {
       config.rope.query_growth = 0.7;
       config.rope.original_max_position_embeddings = 4;
     }},
    {"MlpAlone", [](LayerShape& shape) { shape.num_attention_heads = shape.num_key_value_heads = 0; }},
    {"Ungated",
     [](LayerShape& shape) {
       shape.num_attention_heads = shape.num_key_value_heads = 0;
       shape.is_gated = false;
     }},
    {"Narrower",
     [](LayerShape& shape) {
       shape.middle_width = 24;
       shape.output_width = 20;
       shape.attn_shortcut = {ShortcutKind::kLowRank, 5};
       shape.mlp_shortcut = {ShortcutKind::kMatrix, 0};
     }},
    {"Symmetric",
     [](LayerShape& shape) {
       shape.attn_shortcut = {ShortcutKind::kSymmetric, 6};
       shape.has_norm_weights = false;
     }},
};

class TrainableLayer : public ::testing::TestWithParam<Kind> {
 protected:
  TrainableLayer() {
    at::manual_seed(3);
    x_ = at::randn({2, kLength, 32});
  }

  static testing::MemoryCheckpoint model_of(const Kind& kind) {
    ModelConfig config = tiny_config({.layers = 1, .all_biases = true});
    kind.change(config.layers.front());
    kind.change_model(config);
    config.head_width = config.layers.front().output_width;
    return random_model(config);
  }

  testing::MemoryCheckpoint model_ = model_of(GetParam());
  LayerContext context_ = make_layer_context(model_.config(), kLength, at::kCPU);
  DecoderLayer layer_ = load_decoder_layer(model_, 0, at::kFloat, at::kCPU);
  at::Tensor x_;
};

TEST_P(TrainableLayer, ComputesWhatTheWalkComputes) {
  const at::Tensor expected = forward_layer(layer_, context_, x_);
  EXPECT_LT((forward_trainable(layer_, context_, x_, at::kFloat) - expected).abs().max().item<double>(), 2e-5);
}

TEST_P(TrainableLayer, ItsTensorsAreThoseOfTheCheckpoint) {
  const auto tensors = layer_tensors(layer_);
  size_t of_layer = 0;
  for (const TensorInfo& info : model_.tensors()) of_layer += info.name.starts_with("model.layers.0.") ? 1 : 0;
  EXPECT_EQ(tensors.size(), of_layer);
  for (const auto& [suffix, values] : tensors)
    EXPECT_TRUE(at::equal(values, model_.at(layer_tensor_name(0, suffix)))) << suffix;
}

// Central differences along random directions, in fp32: the error of the loss, about 1e-6 of it, over the step.
TEST_P(TrainableLayer, GradientsAreThoseOfFiniteDifferences) {
  DecoderLayer layer = layer_;
  std::vector<at::Tensor> parameters = make_trainable(layer);
  at::Tensor x = x_.clone().requires_grad_();
  parameters.push_back(x);
  const at::Tensor along = at::randn({2, kLength, layer.shape.output_width});
  const auto loss = [&] { return (forward_trainable(layer, context_, x, at::kFloat) * along).to(at::kDouble).sum(); };
  torch::autograd::backward({loss()}, {});
  const c10::NoGradGuard no_gradients;
  for (size_t i = 0; i < parameters.size(); ++i) {
    at::Tensor parameter = parameters[i].detach();
    const at::Tensor direction = at::randn_like(parameter);
    const double expected = (parameters[i].grad() * direction).to(at::kDouble).sum().item<double>();
    const double step = 2e-3;
    parameter.add_(direction, step);
    const double above = loss().item<double>();
    parameter.add_(direction, -2 * step);
    const double below = loss().item<double>();
    parameter.add_(direction, step);
    const double scale = parameters[i].grad().norm().item<double>() * direction.norm().item<double>() /
                         std::sqrt(static_cast<double>(parameter.numel()));
    EXPECT_NEAR((above - below) / (2 * step), expected, 0.02 * scale + 1e-3) << "parameter " << i;
  }
}

TEST_P(TrainableLayer, MergedUpdatesAreAppliedUpdates) {
  std::vector<LayerUpdates> updates = make_lora(model_.config(), {.rank = 3, .alpha = 5}, at::kCPU);
  EXPECT_TRUE(at::equal(forward_trainable(layer_, context_, x_, at::kFloat, &updates.front()),
                        forward_trainable(layer_, context_, x_, at::kFloat)))
      << "an update that was never trained changes nothing";
  for (LowRankUpdate& part : updates.front().parts) part.b.normal_();
  const at::Tensor applied = forward_trainable(layer_, context_, x_, at::kFloat, &updates.front());
  const DecoderLayer merged = with_updates(load_decoder_layer(model_, 0, at::kFloat, at::kCPU), updates.front());
  const at::Tensor expected = forward_layer(merged, context_, x_);
  EXPECT_GT((applied - forward_trainable(layer_, context_, x_, at::kFloat)).abs().max().item<double>(), 0.1);
  EXPECT_LT((applied - expected).abs().max().item<double>() / expected.abs().max().item<double>(), 1e-5);
}

INSTANTIATE_TEST_SUITE_P(Kinds, TrainableLayer, ::testing::ValuesIn(kKinds),
                         [](const auto& kind) { return std::string(kind.param.name); });

TEST(Updates, DropoutIsTheSameForTheSameSeedAndOffWithoutOne) {
  const testing::MemoryCheckpoint model = testing::tiny_model({.layers = 1});
  const LayerContext context = make_layer_context(model.config(), kLength, at::kCPU);
  const DecoderLayer layer = load_decoder_layer(model, 0, at::kFloat, at::kCPU);
  const at::Tensor x = at::randn({1, kLength, 32});
  std::vector<LayerUpdates> updates = make_lora(model.config(), {.dropout = 0.5}, at::kCPU);
  for (LowRankUpdate& part : updates.front().parts) part.b.normal_();
  const auto run = [&](std::optional<uint64_t> seed) {
    return forward_trainable(layer, context, x, at::kFloat, &updates.front(), seed);
  };
  EXPECT_TRUE(at::equal(run(4), run(4)));
  EXPECT_FALSE(at::equal(run(4), run(5)));
  EXPECT_TRUE(at::equal(run(std::nullopt), run(std::nullopt)));
}

}  // namespace
}  // namespace dynslice
