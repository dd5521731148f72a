// Modular compression on a CUDA device against that on the CPU.
#include <gtest/gtest.h>

#include "dynslice/modular/modular.h"
#include "test_device.h"
#include "tiny_model.h"

namespace dynslice {
namespace {

using testing::loss_of;
using testing::MemoryCheckpoint;
using testing::random_windows;
using testing::tiny_model;

constexpr int64_t kInner = 96;  // of the tiny model's MLPs

SlicePlan some_plan(const ModelConfig& config) {
  SlicePlan plan;
  plan.method = "modular";
  plan.hidden_size = plan.head_width = config.hidden_size;
  plan.intermediate_size = kInner;
  plan.dims = {kInner, 64, 48};
  for (const int64_t size : plan.dims)
    plan.ratios.push_back(1 - static_cast<double>(size) / static_cast<double>(kInner));
  plan.heads = {{4, 2}, {2, 2}, {2, 1}};
  return plan;
}

SensitivitySource measured(const LayerWalk& walk, const TokenWindows& windows) {
  return SensitivitySource([&walk, windows] { return measure_sensitivity(walk, windows, 1 << 20); });
}

class CudaModular : public testing::OnDevice {
 protected:
  double loss_after(const MemoryCheckpoint& model, const ComputeOptions& options, const ModularOptions& how) const {
    const SlicePlan plan = some_plan(model.config());
    MemoryCheckpoint smaller(sliced_config(model.config(), plan));
    const LayerWalk walk(model, options, windows_.length, no_progress());
    SensitivitySource sensitivity = measured(walk, windows_);
    compress_layers(walk, plan, windows_, sensitivity, how,
                    [&](const std::string& name, const at::Tensor& values) { smaller.put(name, values); });
    for (const char* name : {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}) {
      if (const TensorInfo* info = model.find(name)) smaller.put(name, model.load(name, info->shape, at::kFloat));
    }
    return loss_of(smaller, windows_);
  }

  TokenWindows windows_ = random_windows(24, 16, 61);
  ComputeOptions options_{.device = device_, .chunk_tokens = 64};
};

TEST_F(CudaModular, LosesAsLittleAsOnTheCpu) {
  const MemoryCheckpoint model = tiny_model({.all_biases = true});
  for (const ModularRefit refit : {ModularRefit::kSelf, ModularRefit::kDense, ModularRefit::kAll}) {
    for (const NeuronChoice choice : {NeuronChoice::kLoss, NeuronChoice::kLeverage}) {
      const ModularOptions how{.choice = choice, .refit = refit};
      // Of neurons that cost nearly the same the one or the other may go.
      EXPECT_NEAR(loss_after(model, options_, how), loss_after(model, {.chunk_tokens = 64}, how), 1e-2);
    }
  }
}

TEST_F(CudaModular, FindsTheCpusCurves) {
  const MemoryCheckpoint model = tiny_model();
  const auto curves_on = [&](const ComputeOptions& options) {
    const LayerWalk walk(model, options, windows_.length, no_progress());
    SensitivitySource sensitivity = measured(walk, windows_);
    return measure_loss_curves(walk, windows_, sensitivity, {}, 24);
  };
  const std::vector<LayerCurves> found = curves_on(options_), expected = curves_on({.chunk_tokens = 64});
  ASSERT_EQ(found.size(), expected.size());
  for (size_t i = 0; i < found.size(); ++i) {
    const double neurons = expected[i].neurons.losses.back(), heads = expected[i].heads.losses.back();
    EXPECT_NEAR(found[i].neurons.losses.back(), neurons, 0.02 * neurons) << i;
    EXPECT_NEAR(found[i].heads.losses.back(), heads, 0.02 * heads) << i;
  }
}

}  // namespace
}  // namespace dynslice
