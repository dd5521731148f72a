// What the depth verbs find on a CUDA device against what they find on the CPU.
#include <gtest/gtest.h>

#include "dynslice/depth/drop.h"
#include "dynslice/depth/merge.h"
#include "dynslice/depth/repair.h"
#include "dynslice/depth/shallow_losses.h"
#include "test_device.h"
#include "tiny_model.h"

namespace dynslice {
namespace {

constexpr int64_t kDeviceLength = 16;

JournalPhase unjournaled(const std::string&) { return {}; }

class CudaDepth : public testing::OnDevice {
 protected:
  testing::MemoryCheckpoint model_ = testing::tiny_model({.layers = 6});
  TokenWindows windows_ = testing::random_windows(5, kDeviceLength, 61);
  LayerWalk cpu_{model_, {.chunk_tokens = 32}, kDeviceLength, no_progress()};
};

// fp32 sums in another order: losses of a few nats agree to five digits.
constexpr double kTolerance = 1e-4;

TEST_F(CudaDepth, DropsTheCpusLayers) {
  const LayerWalk walk(model_, {.device = device_, .chunk_tokens = 32}, kDeviceLength, no_progress());
  const auto expected = drop_by_loss(cpu_, windows_, 3, unjournaled),
             found = drop_by_loss(walk, windows_, 3, unjournaled);
  ASSERT_EQ(found.size(), expected.size());
  for (size_t i = 0; i < found.size(); ++i) {
    EXPECT_EQ(found[i].layer, expected[i].layer);
    EXPECT_NEAR(found[i].loss, expected[i].loss, kTolerance);
  }
}

TEST_F(CudaDepth, MergesTheCpusLayers) {
  const LayerWalk walk(model_, {.device = device_, .chunk_tokens = 32}, kDeviceLength, no_progress());
  for (const MergeRule rule : {MergeRule::kSum, MergeRule::kMean, MergeRule::kLast}) {
    const MergeResult expected = merge_by_sliding(cpu_, windows_, {rule, -1.0, {}}, unjournaled);
    const MergeResult found = merge_by_sliding(walk, windows_, {rule, -1.0, {}}, unjournaled);
    EXPECT_EQ(found.plan.layers, expected.plan.layers);
    ASSERT_EQ(found.trials.size(), expected.trials.size());
    for (size_t i = 0; i < found.trials.size(); ++i)
      EXPECT_NEAR(found.trials[i].cosine, expected.trials[i].cosine, kTolerance);
  }
}

TEST_F(CudaDepth, FitsTheCpusRepairs) {
  const LayerWalk walk(model_, {.device = device_, .chunk_tokens = 32}, kDeviceLength, no_progress());
  for (const bool on_stream : {false, true}) {
    const auto expected = fit_repairs(cpu_, windows_, {1, 2, 3}, 2, {on_stream, 1e-2});
    const auto found = fit_repairs(walk, windows_, {1, 2, 3}, 2, {on_stream, 1e-2});
    std::vector<DepthPlan> plans;
    for (size_t i = 0; i < found.size(); ++i) {
      EXPECT_TRUE(found[i].map.is_cpu());
      EXPECT_LT(testing::largest_difference(found[i].map, expected[i].map), 1e-3);
      plans.push_back(plan_without_window(6, found[i].layer + 1, 2, expected[i]));
    }
    const auto losses = shallow_losses(cpu_, windows_, plans), losses_found = shallow_losses(walk, windows_, plans);
    for (size_t i = 0; i < losses.size(); ++i) EXPECT_NEAR(losses_found[i], losses[i], kTolerance);
  }
}

}  // namespace
}  // namespace dynslice
