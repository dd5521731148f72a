// Modular compression on a CUDA device against that on the CPU.
#include <gtest/gtest.h>

#include "test_device.h"
#include "unit/modular/compressed_models.h"

namespace dynslice {
namespace {

using testing::compressed;
using testing::loss_of;
using testing::measured;
using testing::MemoryCheckpoint;
using testing::plan_of_sizes;
using testing::random_windows;
using testing::tiny_model;

SlicePlan some_plan(const ModelConfig& config) {
  SlicePlan plan = plan_of_sizes(config, {96, 64, 48});
  plan.heads = {{4, 2}, {2, 2}, {2, 1}};
  return plan;
}

class CudaModular : public testing::OnDevice {
 protected:
  double loss_after(const MemoryCheckpoint& model, const ComputeOptions& options, const ModularOptions& how) const {
    const LayerWalk walk(model, options, windows_.length, no_progress());
    return loss_of(compressed(model, some_plan(model.config()), windows_, measured(walk, windows_), walk, how),
                   windows_);
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
