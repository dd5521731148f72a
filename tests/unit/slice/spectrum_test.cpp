#include "dynslice/slice/spectrum.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "aten.h"
#include "unit/modular/compressed_models.h"

namespace dynslice {
namespace {

using testing::measured;
using testing::MemoryCheckpoint;
using testing::random_windows;
using testing::tiny_model;

constexpr int64_t kWidth = 32;

// Tokens that live in 8 of the 32 directions, through layers that add nothing.
MemoryCheckpoint model_of_few_directions() {
  MemoryCheckpoint model = tiny_model();
  model.at("model.embed_tokens.weight").narrow(1, 8, kWidth - 8).zero_();
  for (const TensorInfo& info : model.tensors()) {
    if (info.name.find("o_proj") != std::string::npos || info.name.find("down_proj") != std::string::npos)
      model.at(info.name).zero_();
  }
  return model;
}

TEST(Spectra, CostNothingWhereThereIsNoEnergy) {
  const MemoryCheckpoint model = model_of_few_directions();
  const TokenWindows windows = random_windows(8, 16, 61);
  const LayerWalk walk(model, {}, windows.length, no_progress());
  SensitivitySource sensitivity = measured(walk, windows);
  for (const std::vector<double>& importance : {std::vector<double>{1, 1, 1}, std::vector<double>{}}) {
    const auto curves = measure_spectra(walk, windows, importance, sensitivity, 4);
    ASSERT_EQ(curves.size(), 3U);
    for (const LossCurve& curve : curves) {
      ASSERT_EQ(curve.losses.size(), static_cast<size_t>(kWidth - 4 + 1));
      EXPECT_TRUE(std::ranges::is_sorted(curve.losses));
      EXPECT_LT(curve.losses[kWidth - 8], 1e-9 * curve.losses.back());
      EXPECT_GT(curve.losses[kWidth - 7], 0);
    }
  }
}

TEST(Spectra, AreSharesTimesTheImportance) {
  const MemoryCheckpoint model = tiny_model();
  const TokenWindows windows = random_windows(8, 16, 61);
  const LayerWalk walk(model, {}, windows.length, no_progress());
  SensitivitySource none;
  const auto curves = measure_spectra(walk, windows, {1, 0.25, 0}, none, 1);
  const auto whole = measure_spectra(walk, windows, {1, 1, 1}, none, 1);
  for (size_t i = 0; i < curves[0].losses.size(); ++i) {
    EXPECT_NEAR(curves[1].losses[i], 0.25 * whole[1].losses[i], 1e-12);
    EXPECT_EQ(curves[2].losses[i], 0);
    EXPECT_LT(whole[0].losses[i], 1);
  }
}

}  // namespace
}  // namespace dynslice
