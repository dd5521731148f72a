// The forward on a CUDA device against the one on the CPU.
#include <gtest/gtest.h>

#include "dynslice/resources/estimate.h"
#include "dynslice/tensor/device_memory.h"
#include "dynslice/walk/head.h"
#include "dynslice/walk/layer_walk.h"
#include "dynslice/walk/memory_plan.h"
#include "dynslice/walk/resident_model.h"
#include "test_device.h"
#include "tiny_model.h"
#include "unit/support/error_matchers.h"
#include "unit/support/temporary_folder.h"

namespace dynslice {
namespace {

using testing::largest_difference;
using testing::MemoryCheckpoint;
using testing::random_windows;
using testing::tiny_model;

constexpr int64_t kVocabulary = 61;

// Logits [windows, T, V] of whole windows, on the CPU.
at::Tensor walked_logits(const Checkpoint& checkpoint, const TokenWindows& windows, const ComputeOptions& options) {
  const LayerWalk walk(checkpoint, options, windows.length, no_progress());
  ResidualStream stream = walk.embed(windows);
  run_dense(walk, "test", stream);
  return logits(load_head(walk), stream.gather().view({windows.tokens(), -1}))
      .view({windows.count, windows.length, -1})
      .cpu();
}

at::Tensor resident_logits(const Checkpoint& checkpoint, const TokenWindows& windows, const ComputeOptions& options,
                           const std::vector<int64_t>& pieces) {
  const ResidentModel model(checkpoint, options, no_progress());
  KeyValueCache cache = model.make_cache(windows.count, windows.length);
  const at::Tensor ids =
      at::tensor(at::ArrayRef<int32_t>(windows.ids), at::kLong).view({windows.count, windows.length});
  std::vector<at::Tensor> parts;
  int64_t first = 0;
  for (const int64_t piece : pieces) {
    parts.push_back(model.logits(model.forward(ids.narrow(1, first, piece), cache)).cpu());
    first += piece;
  }
  return at::cat(parts, 1);
}

MemoryCheckpoint with_config(const MemoryCheckpoint& source, const ModelConfig& config) {
  MemoryCheckpoint result(config);
  for (const TensorInfo& info : source.tensors()) result.put(info.name, source.load(info.name, info.shape, at::kFloat));
  return result;
}

// Every second layer sees 5 tokens.
MemoryCheckpoint sliding_model() {
  const MemoryCheckpoint dense = tiny_model();
  ModelConfig config = dense.config();
  config.sliding_window = 5;
  config.layer_is_sliding = {true, false, true};
  return with_config(dense, config);
}

// Of every kind of residual path, with a tied matrix behind rotations.
MemoryCheckpoint sliced_model() {
  ModelConfig config = testing::tiny_config({.tied = true});
  config.embedding_width = 24;
  config.has_embedding_rotation = config.has_head_rotation = true;
  const std::vector<int64_t> widths = {24, 16, 20, 32};
  const std::vector<ShortcutShape> attn = {{}, {ShortcutKind::kMatrix, 0}, {ShortcutKind::kSymmetric, 3}};
  const std::vector<ShortcutShape> mlp = {
      {ShortcutKind::kLowRank, 2}, {ShortcutKind::kSymmetric, 2}, {ShortcutKind::kMatrix, 0}};
  for (size_t i = 0; i < config.layers.size(); ++i) {
    LayerShape& shape = config.layers[i];
    shape.input_width = shape.middle_width = widths[i];
    shape.output_width = widths[i + 1];
    shape.attn_shortcut = attn[i];
    shape.mlp_shortcut = mlp[i];
    shape.has_norm_weights = false;
  }
  return testing::random_model(config);
}

class CudaModel : public testing::OnDevice {
 protected:
  ComputeOptions on_device(at::ScalarType dtype = at::kFloat) const {
    return {.device = device_, .dtype = dtype, .chunk_tokens = 64};
  }

  void expect_the_cpus_logits(const Checkpoint& checkpoint, int64_t length, const std::string& what) const {
    const TokenWindows windows = random_windows(3, length, kVocabulary);
    const at::Tensor expected = walked_logits(checkpoint, windows, {});
    const at::Tensor found = walked_logits(checkpoint, windows, on_device());
    // fp32 sums in another order; products of TF32 would be ten times farther off.
    EXPECT_LT(largest_difference(found, expected), 1e-4 * expected.abs().max().item<double>()) << what;
  }
};

TEST_F(CudaModel, GivesTheCpusLogits) {
  expect_the_cpus_logits(tiny_model(), 16, "llama");
  expect_the_cpus_logits(tiny_model({.all_biases = true}), 16, "biases");
  expect_the_cpus_logits(tiny_model({.tied = true}), 16, "tied");
  expect_the_cpus_logits(tiny_model({.kv_heads = 4}), 16, "a key for every query");
  expect_the_cpus_logits(sliding_model(), 16, "sliding windows");
  expect_the_cpus_logits(sliced_model(), 16, "sliced");
  expect_the_cpus_logits(tiny_model({.hidden_size = 128, .heads = 2, .kv_heads = 1}), 100, "heads of 64");
}

TEST_F(CudaModel, InBfloat16StaysNearIt) {
  for (const MemoryCheckpoint& model : {tiny_model(), sliding_model(), sliced_model()}) {
    const TokenWindows windows = random_windows(3, 16, kVocabulary);
    const at::Tensor expected = walked_logits(model, windows, {});
    const at::Tensor found = walked_logits(model, windows, on_device(at::kBFloat16));
    // Weights and branches rounded to 8 bits of mantissa, through three layers.
    EXPECT_LT((found - expected).norm().item<double>(), 0.05 * expected.norm().item<double>());
  }
}

TEST_F(CudaModel, GivesTheSameBitsTwice) {
  const MemoryCheckpoint model = tiny_model();
  const TokenWindows windows = random_windows(5, 32, kVocabulary);
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    EXPECT_TRUE(
        at::equal(walked_logits(model, windows, on_device(dtype)), walked_logits(model, windows, on_device(dtype))));
  }
}

TEST_F(CudaModel, InMemoryGivesTheCpusLogitsHoweverTheTextIsCut) {
  const std::vector<std::vector<int64_t>> cuts = {{12}, {8, 1, 1, 1, 1}, std::vector<int64_t>(12, 1), {5, 4, 1, 2}};
  for (const MemoryCheckpoint& model : {tiny_model(), sliding_model(), sliced_model()}) {
    const TokenWindows windows = random_windows(3, 12, kVocabulary);
    const at::Tensor expected = walked_logits(model, windows, {});
    for (const auto& pieces : cuts) {
      EXPECT_LT(largest_difference(resident_logits(model, windows, on_device(), pieces), expected), 1e-3);
      EXPECT_LT((resident_logits(model, windows, on_device(at::kBFloat16), pieces) - expected).norm().item<double>(),
                0.05 * expected.norm().item<double>());
    }
  }
}

TEST_F(CudaModel, SpillsStreamsToTheHost) {
  const testing::TemporaryFolder folder;
  const MemoryCheckpoint model = tiny_model();
  const TokenWindows windows = random_windows(5, 32, kVocabulary);
  ComputeOptions spilling = on_device();
  spilling.activations = std::make_shared<ActivationStore>(2 * 64 * 32 * 4, folder.path());  // two chunks
  const at::Tensor expected = walked_logits(model, windows, on_device());
  const LayerWalk walk(model, spilling, windows.length, no_progress());
  ResidualStream stream = walk.embed(windows);
  run_dense(walk, "test", stream);
  std::vector<at::Tensor> chunks;
  stream.visit([&](const at::Tensor& x) {
    EXPECT_EQ(x.device().type(), device_.type());
    chunks.push_back(x.clone());
  });
  const at::Tensor found = logits(load_head(walk), at::cat(chunks).view({windows.tokens(), -1})).cpu();
  EXPECT_GT(spilling.activations->scratch_file_bytes(), 0U);
  EXPECT_TRUE(at::equal(found.view(expected.sizes()), expected));
}

TEST_F(CudaModel, IsPlannedByTheDevicesMemory) {
  const auto left = free_device_bytes(device_);
  if (!left) return;  // a LibTorch before 2.11 does not say
  const auto job = [&](uint64_t bytes) {
    return plan_resources(
        [bytes](const ComputeOptions&, int64_t) {
          ResourceEstimate estimate;
          estimate.parts = {{"layer_weights", bytes}};
          return estimate;
        },
        {.device = device_, .chunk_tokens = 1}, {});
  };
  EXPECT_NEAR(static_cast<double>(job(1000).memory_limit) / static_cast<double>(*left), 1, 0.5);
  testing::expect_error(ErrorKind::kOutOfResources, {"the device has", "--device cpu"}, [&] { job(*left * 4); });
  const at::Tensor some = at::empty({int64_t{1} << 20}, at::TensorOptions().device(device_));
  EXPECT_GE(*peak_device_bytes(device_), some.nbytes());
}

TEST_F(CudaModel, MeasuresItsRates) {
  const MachineRates rates = measure_rates(tiny_model().config(), on_device(at::kBFloat16));
  for (const double rate : {rates.forward_flops, rates.rotation_flops, rates.moment_flops, rates.eigen_cubes}) {
    EXPECT_GT(rate, 1e3);
  }
}

TEST(CudaNames, OfDevicesThatAreNotThereAreUsageErrors) {
  for (const char* name : {"cuda:99", "cuda:01", "cuda:x", "cuda:", "gpu"}) {
    testing::expect_error(ErrorKind::kUsage, {"--device", name}, [&] { resolve_compute(name, "auto"); });
  }
}

}  // namespace
}  // namespace dynslice
