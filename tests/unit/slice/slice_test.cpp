#include "dynslice/slice/slice.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "dynslice/support/error.h"
#include "slice/basis.h"
#include "unit/slice/sliced_models.h"
#include "unit/support/temporary_folder.h"

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

MemoryCheckpoint slice(const MemoryCheckpoint& model, const SlicePlan& plan, const TokenWindows& windows,
                       const std::shared_ptr<ActivationStore>& activations = nullptr,
                       RotationRefit refit = RotationRefit::kNone) {
  const LayerWalk walk(model, {.chunk_tokens = 64, .activations = activations}, windows.length, no_progress());
  return testing::collect_tensors(sliced_config(model.config(), plan), [&](const TensorSink& sink) {
    slice_model(walk, plan, windows, sink, nullptr, {}, {.refit = refit});
  });
}

struct TinyKind {
  const char* name;
  TinyOptions options;
};

class EveryKindOfModel : public ::testing::TestWithParam<TinyKind> {};

TEST_P(EveryKindOfModel, KeepsItsLogitsWhenOnlyEmptyDirectionsAreCut) {
  const MemoryCheckpoint model = model_in_a_subspace(GetParam().options);
  const TokenWindows windows = random_windows(8, 16, 61);
  const at::Tensor before = logits_of(model, windows);
  const std::vector<std::vector<int64_t>> plans = {{32, 32, 32}, {24, 24, 24}, {12, 12, 12}, {24, 28, 30}, {30, 26, 24},
                                                   {32, 24, 30}, {24, 32, 32}, {12, 20, 32}, {24, 32, 13}};
  for (const auto& widths : plans) {
    for (const BasisScope basis : {BasisScope::kBlock, BasisScope::kLayer}) {
      for (const int64_t head_width : {32, 20}) {
        SlicePlan plan = plan_of_widths(model.config(), widths, head_width);
        plan.basis = basis;
        for (const RotationRefit refit : {RotationRefit::kNone, RotationRefit::kAll}) {
          const MemoryCheckpoint sliced = slice(model, plan, windows, nullptr, refit);
          // fp32 rounding of some changes of basis; the logits are of size 1 to 10.
          EXPECT_LT(largest_difference(logits_of(sliced, windows), before), 3e-4 * before.abs().max().item<double>())
              << name_of(basis) << ::testing::PrintToString(widths) << " head " << head_width << " refit "
              << static_cast<int>(refit);
        }
      }
    }
  }
}

TEST_P(EveryKindOfModel, ConsistsOfExactlyTheTensorsOfItsConfiguration) {
  const MemoryCheckpoint model = tiny_model(GetParam().options);
  const SlicePlan plan = plan_of_widths(model.config(), {24, 16, 8});
  const MemoryCheckpoint sliced = slice(model, plan, random_windows(2, 16, 61));
  testing::expect_tensors_of_configuration(sliced);
}

TEST_P(EveryKindOfModel, HasNoShortcutBesideAttentionWhenALayerHasOneBasis) {
  const MemoryCheckpoint model = tiny_model(GetParam().options);
  SlicePlan plan = plan_of_widths(model.config(), {24, 16, 32}, 20);
  plan.basis = BasisScope::kLayer;
  const MemoryCheckpoint sliced = slice(model, plan, random_windows(2, 16, 61));
  testing::expect_tensors_of_configuration(sliced);
  for (const TensorInfo& tensor : sliced.tensors()) EXPECT_EQ(tensor.name.find("attn_shortcut"), std::string::npos);
}

INSTANTIATE_TEST_SUITE_P(Slice, EveryKindOfModel,
                         ::testing::Values(TinyKind{"Untied", {}}, TinyKind{"Tied", {.tied = true}},
                                           TinyKind{"SingleKeyValueHead", {.kv_heads = 1}},
                                           TinyKind{"MultiHead", {.kv_heads = 4}},
                                           TinyKind{"QkvBias", {.qkv_bias = true}},
                                           TinyKind{"AllBiases", {.tied = true, .all_biases = true}},
                                           TinyKind{"HeadNorms", {.head_norms = true}}, TinyKind{"Opt", {.opt = true}},
                                           TinyKind{"Delta", {.delta = true}},
                                           TinyKind{"TiedOpt", {.tied = true, .opt = true}}),
                         [](const auto& instance) { return instance.param.name; });

TEST(Slice, LeavesATiedModelTiedWhereThatIsSmaller) {
  const MemoryCheckpoint model = tiny_model({.vocab = 400, .tied = true});
  const MemoryCheckpoint sliced =
      slice(model, plan_of_widths(model.config(), {24, 24, 24}, 28), random_windows(4, 16, 61));
  EXPECT_TRUE(sliced.config().tie_word_embeddings);
  EXPECT_EQ(sliced.find("lm_head.weight"), nullptr);
  EXPECT_EQ(sliced.find("model.embed_tokens.weight")->shape, (std::vector<int64_t>{400, 32}));
  // Two narrow matrices are fewer numbers than one whole one.
  const MemoryCheckpoint narrow =
      slice(model, plan_of_widths(model.config(), {12, 12, 12}, 12), random_windows(4, 16, 61));
  EXPECT_FALSE(narrow.config().tie_word_embeddings);
  EXPECT_EQ(narrow.find("lm_head.weight")->shape, (std::vector<int64_t>{400, 12}));
}

TEST(Slice, OfMoreDirectionsHurtsMore) {
  const MemoryCheckpoint model = tiny_model({.layers = 4});
  const TokenWindows windows = random_windows(8, 32, 61);
  const at::Tensor before = logits_of(model, windows);
  double previous = 0;
  for (const int64_t width : {28, 20, 8}) {
    const MemoryCheckpoint sliced =
        slice(model, plan_of_widths(model.config(), std::vector<int64_t>(4, width)), windows);
    const double error = (logits_of(sliced, windows) - before).norm().item<double>();
    EXPECT_GT(error, previous) << width;
    previous = error;
  }
}

TEST(Slice, ComesCloserToTheModelTheMoreIsRefitted) {
  const MemoryCheckpoint model = tiny_model();
  const TokenWindows windows = random_windows(64, 16, 61);
  const at::Tensor before = logits_of(model, windows);
  for (const BasisScope basis : {BasisScope::kBlock, BasisScope::kLayer}) {
    SlicePlan plan = plan_of_widths(model.config(), {24, 20, 24});
    plan.basis = basis;
    double previous = std::numeric_limits<double>::infinity();
    for (const RotationRefit refit : kRefits) {
      const double error =
          (logits_of(slice(model, plan, windows, nullptr, refit), windows) - before).norm().item<double>();
      EXPECT_LT(error, 0.98 * previous) << name_of(basis) << " " << static_cast<int>(refit);
      previous = error;
    }
  }
}

TEST(Slice, OfTheHeadCutsTheOutputMatrixAndStaysNearTheModel) {
  const MemoryCheckpoint model = tiny_model();
  const TokenWindows windows = random_windows(4, 16, 61);
  const MemoryCheckpoint sliced = slice(model, plan_of_widths(model.config(), {32, 32, 32}, 24), windows);
  EXPECT_EQ(sliced.find("lm_head.weight")->shape, (std::vector<int64_t>{61, 24}));
  const at::Tensor before = logits_of(model, windows);
  EXPECT_LT((logits_of(sliced, windows) - before).norm().item<double>(), 0.5 * before.norm().item<double>());
}

// The loss of the model that the sink received, on the same windows.
TEST(Slice, MeasuresTheHeldOutLossOfTheModelThatItWrites) {
  const MemoryCheckpoint model = tiny_model({.all_biases = true});
  const TokenWindows calibration = random_windows(6, 16, 61), held_out = random_windows(3, 16, 61, 11);
  for (const int64_t head_dim : {32, 20}) {
    for (const BasisScope basis : {BasisScope::kBlock, BasisScope::kLayer}) {
      SlicePlan plan = plan_of_widths(model.config(), {24, 16, 28}, head_dim);
      plan.basis = basis;
      for (const RotationRefit refit : kRefits) {
        const LayerWalk walk(model, {.chunk_tokens = 64}, 16, no_progress());
        const double loss = *slice_model(walk, plan, calibration, {}, &held_out, {}, {.refit = refit}).held_out_loss;

        const MemoryCheckpoint sliced = slice(model, plan, calibration, nullptr, refit);
        EXPECT_NEAR(loss, testing::loss_of(sliced, held_out), 1e-4)
            << name_of(basis) << " " << head_dim << " " << static_cast<int>(refit);
      }
    }
  }
}

TEST(Slice, RefusesAModelThatIsSlicedAlready) {
  const MemoryCheckpoint model = tiny_model();
  const TokenWindows windows = random_windows(2, 16, 61);
  const SlicePlan plan = plan_of_widths(model.config(), {24, 24, 24});
  const MemoryCheckpoint sliced = slice(model, plan, windows);
  EXPECT_THROW(slice(sliced, plan, windows), Error);
}

TEST(SecondMoment, GivesTheEigenvectorsOfTheWholeProduct) {
  const at::Tensor x = at::randn({3, 500, 200}) * at::linspace(3, 0.1, 200);
  SecondMoment moment(200, at::kCPU);
  moment.add(x.narrow(0, 0, 1));
  moment.add(x.narrow(0, 1, 2));
  const at::Tensor rows = x.view({-1, 200}).to(at::kDouble);
  const at::Tensor exact = at::matmul(rows.t(), rows);
  const auto [basis, dropped] = principal_directions(moment, 50, "here");
  EXPECT_LT(largest_difference(at::matmul(dropped.t(), dropped), at::eye(150, at::kDouble)), 1e-10);
  EXPECT_LT(at::matmul(dropped.t(), basis).abs().max().item<double>(), 1e-10);
  EXPECT_LT(largest_difference(at::matmul(basis.t(), basis), at::eye(50, at::kDouble)), 1e-10);
  // A basis of an invariant subspace diagonalizes the product, largest values first.
  const at::Tensor inner = at::matmul(basis.t(), at::matmul(exact, basis));
  const at::Tensor values = inner.diagonal();
  // Products of blocks of rows are fp32.
  EXPECT_LT((inner - values.diag()).abs().max().item<double>(), 1e-6 * values[0].item<double>());
  EXPECT_TRUE((values.narrow(0, 0, 49) >= values.narrow(0, 1, 49)).all().item<bool>());
  const at::Tensor all = std::get<0>(at::linalg_eigh(exact));
  EXPECT_NEAR(values[49].item<double>() / all[150].item<double>(), 1.0, 1e-6);
}

TEST(SecondMoment, RefusesNaN) {
  at::Tensor x = at::randn({4, 8});
  x[2][3] = std::numeric_limits<float>::quiet_NaN();
  SecondMoment moment(8, at::kCPU);
  moment.add(x);
  EXPECT_THROW(principal_directions(moment, 4, "here"), Error);
}

TEST(Slice, WithStreamsInTheScratchFileGivesTheSameBits) {
  const MemoryCheckpoint model = tiny_model();
  const TokenWindows windows = random_windows(9, 16, 61);
  const SlicePlan plan = plan_of_widths(model.config(), {24, 16, 24});
  const testing::TemporaryFolder folder;
  const auto store = std::make_shared<ActivationStore>(0, folder.path());
  const MemoryCheckpoint in_memory = slice(model, plan, windows), spilled = slice(model, plan, windows, store);
  EXPECT_GT(store->scratch_file_bytes(), 0U);
  for (const TensorInfo& tensor : in_memory.tensors()) {
    EXPECT_TRUE(at::equal(in_memory.load(tensor.name, tensor.shape, at::kFloat),
                          spilled.load(tensor.name, tensor.shape, at::kFloat)))
        << tensor.name;
  }
}

}  // namespace
}  // namespace dynslice
