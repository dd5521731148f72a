#include "score/zd.h"

#include <ATen/Parallel.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "aten.h"
#include "dynslice/score/score.h"
#include "dynslice/support/error.h"
#include "tiny_model.h"
#include "unit/support/temporary_folder.h"

namespace dynslice {
namespace {

using testing::MemoryCheckpoint;
using testing::random_model;
using testing::tiny_config;
using testing::tiny_model;

// The definition, in fp64, of weights laid end to end.
double share(const std::vector<at::Tensor>& weights) {
  std::vector<at::Tensor> flat;
  for (const at::Tensor& weight : weights) flat.push_back(weight.to(at::kDouble).flatten());
  const at::Tensor all = at::cat(flat);
  return ((all - all.mean()) / all.std(/*unbiased=*/false)).gt(1).to(at::kDouble).mean().item<double>();
}

std::vector<at::Tensor> linears_of(MemoryCheckpoint& model, int64_t layer, const std::vector<std::string>& modules) {
  std::vector<at::Tensor> weights;
  for (const std::string& module : modules) {
    weights.push_back(model.at("model.layers." + std::to_string(layer) + "." + module + "_proj.weight"));
  }
  return weights;
}

const std::vector<std::string> kAll = {"self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o",
                                       "mlp.gate",    "mlp.up",      "mlp.down"};

TEST(WeightScores, AreTheSharesOfOutstandingWeightsOfAllLinears) {
  MemoryCheckpoint model = tiny_model({.layers = 3, .all_biases = true});
  model.at("model.layers.1.mlp.up_proj.weight").mul_(5).add_(0.3);  // another spread, and a mean that is not 0
  model.at("model.layers.1.mlp.up_proj.bias").fill_(1e6);           // no weight of a linear
  model.at("model.layers.1.input_layernorm.weight").fill_(1e6);
  const LayerScores scores = score_weights(model, no_progress());
  ASSERT_EQ(scores.values.size(), 3U);
  for (int64_t layer = 0; layer < 3; ++layer) {
    EXPECT_DOUBLE_EQ(scores.values[static_cast<size_t>(layer)], share(linears_of(model, layer, kAll)));
  }
  EXPECT_LT(scores.values[1], scores.values[0]);
  EXPECT_EQ(scores.metric, "zd");
  EXPECT_EQ(scores.more_important, MoreImportant::kLow);
  EXPECT_EQ(scores.tokens, 0);
}

TEST(WeightScores, AreTheSameByTheNameOfTheMetric) {
  MemoryCheckpoint model = tiny_model();
  const LayerWalk walk(model, {}, 8, no_progress());
  EXPECT_EQ(score_layers(walk, {}, {parse_metric("zd")}).values, score_weights(model, no_progress()).values);
}

TEST(WeightScores, OfLayersOfOtherShapesNeedNoStream) {
  ModelConfig config = tiny_config({.layers = 2});
  LayerShape& narrow = config.layers[0];
  narrow.input_width = narrow.middle_width = config.embedding_width = 24;
  narrow.mlp_shortcut = {ShortcutKind::kMatrix, 0};
  narrow.has_norm_weights = false;
  LayerShape& alone = config.layers[1];  // an MLP without a gate
  alone.num_attention_heads = alone.num_key_value_heads = 0;
  alone.is_gated = false;
  MemoryCheckpoint model = random_model(config);
  model.at("model.layers.0.mlp_shortcut.weight").fill_(1e6);
  const LayerScores scores = score_weights(model, no_progress());
  EXPECT_DOUBLE_EQ(scores.values.at(0), share(linears_of(model, 0, kAll)));
  EXPECT_DOUBLE_EQ(scores.values.at(1), share(linears_of(model, 1, {"mlp.up", "mlp.down"})));
}

// Stops the task after some steps, as Ctrl-C does.
class StoppingProgress final : public ProgressSink {
 public:
  explicit StoppingProgress(int64_t steps) : left_(steps) {}
  void start(const std::string&, int64_t, const std::string&) override {}
  void advance(int64_t) override {
    if (--left_ == 0) throw Error(ErrorKind::kInterrupted, "stopped");
  }
  void skip(int64_t amount) override { skipped += amount; }
  void finish() override {}
  int64_t skipped = 0;

 private:
  int64_t left_;
};

TEST(WeightScores, GoOnFromTheLayerWhereTheyWereStopped) {
  const testing::TemporaryFolder folder;
  MemoryCheckpoint model = tiny_model({.layers = 5});
  const std::vector<double> expected = score_weights(model, no_progress()).values;
  const auto journal = [&](bool resume) {
    return std::make_unique<Journal>(std::make_shared<WorkFolder>(folder / "work"), OrderedJson{{"job", "zd"}},
                                     OrderedJson::object(), JournalOptions{resume, false, JournalPace::kEvery});
  };
  {
    const auto first = journal(false);
    StoppingProgress stopping(3);
    EXPECT_THROW(score_weights(model, stopping, JournalPhase(*first, "scoring")), Error);
    ASSERT_TRUE(first->keep());
  }
  model.at("model.layers.0.mlp.up_proj.weight").fill_(NAN);  // would be noticed if it were read again
  const auto second = journal(true);
  StoppingProgress whole(100);
  EXPECT_EQ(score_weights(model, whole, JournalPhase(*second, "scoring")).values, expected);
  EXPECT_EQ(whole.skipped, 3);
}

TEST(ShareOfOutstanding, DoesNotDependOnThreadsNorOnHowValuesAreStored) {
  at::manual_seed(5);
  const at::Tensor low = at::randn({700, 1000}).to(at::kBFloat16);  // several blocks, the last one incomplete
  const std::vector<at::Tensor> stored = {low, low.flatten().narrow(0, 0, 4097).contiguous()};
  const std::vector<at::Tensor> wide = {stored[0].to(at::kFloat), stored[1].to(at::kFloat)};
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  const double expected = share_of_outstanding(wide);
  EXPECT_EQ(share_of_outstanding(stored), expected);
  at::set_num_threads(3);
  EXPECT_EQ(share_of_outstanding(wide), expected);
  EXPECT_EQ(share_of_outstanding(stored), expected);
  at::set_num_threads(threads);
  EXPECT_DOUBLE_EQ(expected, share(wide));
  EXPECT_NEAR(expected, 0.1587, 0.002);  // of a normal distribution
}

TEST(ShareOfOutstanding, CountsWhatIsAboveOneDeviationAndNotWhatIsJustThere) {
  EXPECT_EQ(share_of_outstanding({at::tensor({-1.0F, 1.0F, -1.0F, 1.0F})}), 0);
  EXPECT_EQ(share_of_outstanding({at::tensor({0.0F, 0.0F, 0.0F, 4.0F})}), 0.25);
}

TEST(ShareOfOutstanding, IsZeroWhereAllAreTheSameOrNoneIsThere) {
  EXPECT_EQ(share_of_outstanding({at::full({1000, 1000}, 0.1F)}), 0);
  EXPECT_EQ(share_of_outstanding({at::empty({0, 5})}), 0);
}

}  // namespace
}  // namespace dynslice
