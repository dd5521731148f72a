// Scores on a CUDA device against those of the CPU.
#include <gtest/gtest.h>

#include "dynslice/score/score.h"
#include "test_device.h"
#include "tiny_model.h"

namespace dynslice {
namespace {

class CudaScores : public testing::OnDevice {};

TEST_F(CudaScores, AreTheCpus) {
  const testing::MemoryCheckpoint model = testing::tiny_model({.layers = 4});
  const TokenWindows windows = testing::random_windows(5, 24, 61);
  const auto scores = [&](const std::string& metric, at::Device device, bool after_final_norm) {
    const LayerWalk walk(model, {.device = device, .chunk_tokens = 48}, windows.length, no_progress());
    ScoreOptions options{parse_metric(metric)};
    options.after_final_norm = after_final_norm;
    return score_layers(walk, windows, options);
  };
  for (const char* metric : {"lr", "bi", "angular", "window:3", "cka"}) {
    for (const bool after_final_norm : {false, true}) {
      const LayerScores expected = scores(metric, at::kCPU, after_final_norm);
      const LayerScores found = scores(metric, device_, after_final_norm);
      ASSERT_EQ(found.values.size(), expected.values.size());
      // Streams differ by the rounding of fp32.
      for (size_t i = 0; i < found.values.size(); ++i) EXPECT_NEAR(found.values[i], expected.values[i], 1e-5) << metric;
      EXPECT_EQ(found.matrix.size(), expected.matrix.size());
    }
  }
}

}  // namespace
}  // namespace dynslice
