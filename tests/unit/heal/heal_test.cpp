#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "aten.h"
#include "dynslice/checkpoint/open_checkpoint.h"
#include "dynslice/heal/distill.h"
#include "dynslice/heal/lora.h"
#include "dynslice/model/tensor_layout.h"
#include "tiny_model.h"
#include "unit/support/error_matchers.h"
#include "unit/support/temporary_folder.h"

namespace dynslice {
namespace {

using testing::all_streams;
using testing::expect_error;
using testing::loss_of;
using testing::MemoryCheckpoint;
using testing::random_windows;
using testing::tiny_config;
using testing::tiny_model;

constexpr int64_t kLength = 16;

// Text that can be learnt: every window counts up from its first token.
TokenWindows counting_windows(int64_t count) {
  TokenWindows windows{{}, count, kLength};
  for (int64_t w = 0; w < count; ++w) {
    for (int64_t t = 0; t < kLength; ++t) windows.ids.push_back(static_cast<int32_t>((7 * w + t) % 61));
  }
  return windows;
}

std::unique_ptr<Checkpoint> written(const Checkpoint& source, const std::vector<LayerUpdates>& updates,
                                    const std::filesystem::path& out) {
  CheckpointWriter writer(out, checkpoint_tensors(source.config(), at::kFloat), false);
  write_healed(source, updates, at::kFloat, writer, no_progress());
  writer.write_text("config.json", to_text(write_config(source.config(), "float32")));
  writer.commit();
  return open_checkpoint(out);
}

TrainingOptions some_training(int64_t updates) {
  TrainingOptions options;
  options.updates = updates;
  options.batch = 4;
  options.micro_batch = 2;
  options.learning_rate = 1e-2;
  return options;
}

TEST(Lora, LearnsAndWritesWhatItMeasured) {
  const testing::TemporaryFolder folder;
  const MemoryCheckpoint source = tiny_model({.layers = 3, .tied = true});
  const TokenWindows text = counting_windows(24), held_out = counting_windows(8);
  const ResidentModel model(source, {}, no_progress());
  const LoraResult result = heal_by_lora(model, examples_of(text), examples_of(held_out), {.rank = 4},
                                         some_training(40), /*recomputes=*/true, no_progress());
  const double before = result.training.points.front().validation_loss;
  double after = before;
  for (const TrainingPoint& point : result.training.points) after = std::min(after, point.validation_loss);
  EXPECT_NEAR(before, loss_of(source, held_out), 1e-4);
  EXPECT_LT(after, 0.5 * before);
  EXPECT_NEAR(loss_of(*written(source, result.updates, folder / "out"), held_out), after, 1e-4);
}

TEST(Lora, DoesNotDependOnWhatIsKeptOfTheForward) {
  const MemoryCheckpoint source = tiny_model({.layers = 2});
  const ResidentModel model(source, {}, no_progress());
  const auto text = examples_of(counting_windows(8));
  const LoraOptions lora{.rank = 4, .dropout = 0.3};
  const auto run = [&](bool recomputes) {
    TrainingOptions options = some_training(5);
    options.micro_batch = recomputes ? 2 : 4;
    return heal_by_lora(model, text, {}, lora, options, recomputes, no_progress()).updates;
  };
  const auto again = run(true), kept = run(false);
  for (size_t layer = 0; layer < kept.size(); ++layer) {
    for (size_t part = 0; part < kept[layer].parts.size(); ++part) {
      // AdamW divides gradients by their size: rounding shows in the entries that have next to none.
      const at::Tensor &b = kept[layer].parts[part].b, difference = again[layer].parts[part].b - b;
      EXPECT_LT(difference.norm().item<double>(), 0.01 * b.norm().item<double>());
    }
  }
}

TEST(Lora, TheModelThatIsHealedIsLeftAsItIs) {
  const MemoryCheckpoint source = tiny_model({.layers = 2});
  const ResidentModel model(source, {}, no_progress());
  const at::Tensor before = model.layers().front().qkv.weight.clone();
  heal_by_lora(model, examples_of(counting_windows(8)), {}, {.rank = 2}, some_training(3), true, no_progress());
  EXPECT_TRUE(at::equal(before, model.layers().front().qkv.weight));
}

TEST(Lora, UpdatesOnlyTheModulesThatAreNamed) {
  const ModelConfig config = tiny_config({.layers = 2});
  LoraOptions options;
  options.modules = {"v_proj", "down_proj"};
  const auto updates = make_lora(config, options, at::kCPU);
  ASSERT_EQ(updates.size(), 2U);
  ASSERT_EQ(updates[0].parts.size(), 2U);
  EXPECT_EQ(updates[0].parts[0].module, "self_attn.v_proj");
  EXPECT_EQ(updates[0].parts[0].first_row, 32 + 16);  // behind queries and keys
  EXPECT_EQ(updates[0].parts[1].a.size(1), 96);
  options.modules = {"q_proj", "w_proj"};
  expect_error(ErrorKind::kUsage, {"w_proj", "gate_proj"}, [&] { make_lora(config, options, at::kCPU); });
}

TEST(Lora, AdapterTensorsHaveTheNamesOfPeft) {
  const ModelConfig config = tiny_config({.layers = 1});
  const auto updates = make_lora(config, {.rank = 3}, at::kCPU);
  const auto tensors = adapter_tensors(config, updates);
  EXPECT_EQ(tensors.front().name, "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight");
  EXPECT_EQ(tensors.front().shape, (std::vector<int64_t>{3, 32}));
  EXPECT_EQ(tensors[1].name, "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight");
  EXPECT_EQ(adapter_config(config, {.rank = 3}, "base").at("r"), 3);
  const ModelConfig opt = tiny_config({.layers = 1, .opt = true});
  EXPECT_EQ(adapter_tensors(opt, make_lora(opt, {}, at::kCPU)).back().name,
            "base_model.model.model.decoder.layers.0.fc2.lora_B.weight");
  EXPECT_THAT(adapter_config(opt, {}, "base").at("target_modules").get<std::vector<std::string>>(),
              ::testing::ElementsAre("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"));
}

// ---- Distillation

// The model with noise on some of its weights: what distillation has to mend.
MemoryCheckpoint damaged(const MemoryCheckpoint& source) {
  MemoryCheckpoint result(source.config());
  at::manual_seed(9);
  for (const OutputTensor& tensor : checkpoint_tensors(source.config(), at::kFloat)) {
    const at::Tensor values = source.load(tensor.name, tensor.shape, at::kFloat);
    const bool linear = tensor.name.find("_proj.weight") != std::string::npos;
    // Of rank 2, so that updates of rank 4 can take it away.
    at::Tensor noise = at::zeros_like(values);
    if (linear) noise = at::randn({values.size(0), 2}).matmul(at::randn({2, values.size(1)})) * 0.03;
    result.put(tensor.name, values + noise);
  }
  return result;
}

class Distillation : public ::testing::Test {
 protected:
  double final_error(const Checkpoint& smaller) const {
    const LayerWalk one(source_, {}, kLength, no_progress()), other(smaller, {}, kLength, no_progress());
    const at::Tensor expected = all_streams(one, windows_).back(), found = all_streams(other, windows_).back();
    return ((found - expected).square().sum(-1) / expected.square().sum(-1)).mean().item<double>();
  }

  MemoryCheckpoint source_ = tiny_model({.layers = 3});
  TokenWindows windows_ = random_windows(24, kLength, 61);
};

TEST_F(Distillation, BringsEveryLayerBackToTheOriginal) {
  const testing::TemporaryFolder folder;
  const MemoryCheckpoint broken = damaged(source_);
  const LayerWalk walk(broken, {}, kLength, no_progress());
  const DistillOptions options{{.rank = 4}, some_training(60), 4, false};
  const DistillResult result = heal_by_distillation(walk, source_, {1, 2, 3}, windows_, options);
  ASSERT_EQ(result.layers.size(), 3U);
  for (const DistilledLayer& layer : result.layers) EXPECT_LT(layer.after, layer.before);
  EXPECT_LT(final_error(*written(broken, result.updates, folder / "out")), 0.3 * final_error(broken));
}

TEST_F(Distillation, ARunThatWasStoppedGoesOnToTheSameBits) {
  const testing::TemporaryFolder folder;
  const MemoryCheckpoint broken = damaged(source_);
  const LayerWalk walk(broken, {}, kLength, no_progress());
  const DistillOptions options{{.rank = 2}, some_training(4), 4, false};
  const DistillResult expected = heal_by_distillation(walk, source_, {1, 2, 3}, windows_, options);
  // Stops when the second layer begins.
  class Stopping final : public ProgressSink {
   public:
    void start(const std::string& task, int64_t, const std::string&) override {
      if (task.starts_with("Layer 1")) throw Error(ErrorKind::kInterrupted, "stop");
    }
    void advance(int64_t) override {}
    void finish() override {}
  } stopping;
  const auto journal = [&](bool resume) {
    return std::make_unique<Journal>(std::make_shared<WorkFolder>(folder / "out.partial"), OrderedJson{{"a", 1}},
                                     OrderedJson{}, JournalOptions{resume, false, JournalPace::kEvery});
  };
  {
    const LayerWalk stopped(broken, {}, kLength, stopping);
    const auto kept = journal(false);
    EXPECT_THROW(heal_by_distillation(stopped, source_, {1, 2, 3}, windows_, options, {*kept, "distilling"}), Error);
    kept->keep();
  }
  const auto kept = journal(true);
  ASSERT_TRUE(kept->is_resumed());
  const DistillResult result = heal_by_distillation(walk, source_, {1, 2, 3}, windows_, options, {*kept, "distilling"});
  for (size_t layer = 0; layer < 3; ++layer) {
    EXPECT_EQ(result.layers[layer].after, expected.layers[layer].after);
    for (size_t part = 0; part < result.updates[layer].parts.size(); ++part)
      EXPECT_TRUE(at::equal(result.updates[layer].parts[part].b, expected.updates[layer].parts[part].b));
  }
}

TEST_F(Distillation, RefusesLayersThatHaveNoPlaceInTheOriginal) {
  const MemoryCheckpoint broken = damaged(source_);
  const LayerWalk walk(broken, {}, kLength, no_progress());
  for (const std::vector<int64_t>& boundaries :
       {std::vector<int64_t>{1, 2}, std::vector<int64_t>{2, 1, 3}, std::vector<int64_t>{1, 2, 4}}) {
    expect_error(ErrorKind::kUsage, {"cannot be placed"},
                 [&] { heal_by_distillation(walk, source_, boundaries, windows_, {}); });
  }
}

}  // namespace
}  // namespace dynslice
