#include "dynslice/slice/global.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "dynslice/support/error.h"
#include "slice/directions.h"
#include "unit/slice/sliced_models.h"
#include "unit/support/error_matchers.h"

namespace dynslice {
namespace {

using testing::kRefits;
using testing::largest_difference;
using testing::logits_of;
using testing::MemoryCheckpoint;
using testing::model_in_a_subspace;
using testing::plan_of_widths;
using testing::random_windows;
using testing::tiny_model;
using testing::TinyOptions;

SlicePlan plan_of_width(const ModelConfig& config, int64_t width) {
  SlicePlan plan = plan_of_widths(config, std::vector<int64_t>(config.layers.size(), width), width);
  plan.basis = BasisScope::kGlobal;
  return plan;
}

MemoryCheckpoint slice(const MemoryCheckpoint& model, int64_t width, const TokenWindows& windows,
                       const GlobalOptions& options = {}, SensitivitySource sensitivity = {}) {
  const SlicePlan plan = plan_of_width(model.config(), width);
  const LayerWalk walk(model, {.chunk_tokens = 64}, windows.length, no_progress());
  return testing::collect_tensors(sliced_config(model.config(), plan), [&](const TensorSink& sink) {
    slice_globally(walk, plan, windows, sensitivity, options, sink);
  });
}

struct Kind {
  const char* name;
  TinyOptions options;
};

class GlobalBasis : public ::testing::TestWithParam<Kind> {};

TEST_P(GlobalBasis, KeepsTheLogitsWhenNothingIsCut) {
  const MemoryCheckpoint model = tiny_model(GetParam().options);
  const TokenWindows windows = random_windows(8, 16, 61);
  const at::Tensor before = logits_of(model, windows);
  for (const RotationRefit refit : kRefits) {
    const MemoryCheckpoint sliced = slice(model, 32, windows, {.refit = {.refit = refit}});
    // fp32 rounding of a change of basis; the logits are of size 1 to 10.
    EXPECT_LT(largest_difference(logits_of(sliced, windows), before), 3e-4 * before.abs().max().item<double>());
  }
}

// Where the norms' divisor, eps or the tied head's weights would be wrong by the share that is cut.
TEST_P(GlobalBasis, KeepsTheLogitsWhenOnlyEmptyDirectionsAreCut) {
  const MemoryCheckpoint model = model_in_a_subspace(GetParam().options);
  const TokenWindows windows = random_windows(8, 16, 61);
  const at::Tensor before = logits_of(model, windows);
  for (const RotationRefit refit : kRefits) {
    const MemoryCheckpoint sliced = slice(model, 16, windows, {.refit = {.refit = refit}});
    EXPECT_LT(largest_difference(logits_of(sliced, windows), before), 1e-3 * before.abs().max().item<double>());
  }
}

TEST_P(GlobalBasis, GivesAnOrdinaryModelOfASmallerHiddenSize) {
  const MemoryCheckpoint model = tiny_model(GetParam().options);
  const MemoryCheckpoint sliced = slice(model, 24, random_windows(2, 16, 61));
  EXPECT_TRUE(sliced.config().is_ordinary());
  EXPECT_FALSE(sliced.config().is_sliced());
  EXPECT_EQ(sliced.config().hidden_size, 24);
  EXPECT_EQ(sliced.config().layers.front().head_dim, model.config().layers.front().head_dim);
  EXPECT_EQ(sliced.config().tie_word_embeddings, model.config().tie_word_embeddings);
  testing::expect_tensors_of_configuration(sliced);
}

INSTANTIATE_TEST_SUITE_P(Slice, GlobalBasis,
                         ::testing::Values(Kind{"Untied", {}}, Kind{"Tied", {.tied = true}},
                                           Kind{"QkvBias", {.qkv_bias = true}},
                                           Kind{"AllBiases", {.tied = true, .all_biases = true}}),
                         [](const auto& instance) { return instance.param.name; });

TEST(GlobalBasisRefit, BringsTheLogitsCloserTheMoreIsRefitted) {
  for (const bool tied : {false, true}) {
    const MemoryCheckpoint model = tiny_model({.tied = tied});
    const TokenWindows windows = random_windows(64, 16, 61);
    const at::Tensor before = logits_of(model, windows);
    double previous = std::numeric_limits<double>::infinity();
    for (const RotationRefit refit : kRefits) {
      const double error =
          (logits_of(slice(model, 24, windows, {.refit = {.refit = refit}}), windows) - before).norm().item<double>();
      EXPECT_LT(error, 0.98 * previous) << tied << " " << static_cast<int>(refit);
      previous = error;
    }
  }
}

TEST(GlobalBasis, RefusesAPlanOfSeveralWidths) {
  const MemoryCheckpoint model = tiny_model();
  SlicePlan plan = plan_of_width(model.config(), 24);
  plan.dims[1] = 16;
  EXPECT_THROW(check_plan(plan, model.config(), "the plan"), Error);
}

TEST(GlobalBasis, RefusesIdsThatTheModelDoesNotHave) {
  const TokenWindows windows = random_windows(8, 16, 100);  // of a model with 61
  testing::expect_error(ErrorKind::kBadInput, {"the tokenizer gave id", "61 entries"},
                        [&] { slice(tiny_model(), 24, windows); });
}

at::Tensor projector(const at::Tensor& directions) { return at::matmul(directions, directions.t()); }

TEST(LeadingDirections, OfTheEnergyAreThoseOfPrincipalComponents) {
  const at::Tensor turn = std::get<0>(at::linalg_qr(at::randn({20, 20}, at::kDouble)));
  const at::Tensor values = at::linspace(1, 20, 20, at::kDouble);
  const at::Tensor kept = leading_directions(at::matmul(turn * values, turn.t()), {}, 7);
  EXPECT_LT(largest_difference(projector(kept), projector(turn.narrow(1, 13, 7))), 1e-10);
}

TEST(LeadingDirections, OfEnergyAndGradientsHaveTheLargestProducts) {
  const at::Tensor turn = std::get<0>(at::linalg_qr(at::randn({4, 4}, at::kDouble)));
  const at::Tensor energy = at::tensor({100.0, 10.0, 5.0, 1.0}), gradients = at::tensor({0.0001, 1.0, 4.0, 0.5});
  const auto matrix = [&](const at::Tensor& values) { return at::matmul(turn * values.to(at::kDouble), turn.t()); };
  const at::Tensor kept = leading_directions(matrix(energy), matrix(gradients), 2);
  EXPECT_LT(largest_difference(projector(kept), projector(turn.narrow(1, 1, 2))), 1e-6);
}

}  // namespace
}  // namespace dynslice
