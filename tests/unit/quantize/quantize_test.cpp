#include "dynslice/quantize/quantize.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "dynslice/checkpoint/open_checkpoint.h"
#include "dynslice/quantize/packed_checkpoint.h"
#include "dynslice/quantize/plan_losses.h"
#include "dynslice/quantize/planned_checkpoint.h"
#include "dynslice/quantize/quant_plan.h"
#include "dynslice/support/error.h"
#include "tiny_model.h"
#include "unit/support/temporary_folder.h"

namespace dynslice {
namespace {

using testing::loss_of;
using testing::MemoryCheckpoint;
using testing::random_windows;
using testing::TemporaryFolder;
using testing::tiny_model;

constexpr int64_t kVocab = 61;

QuantFormat format_at(int bits, int64_t) { return {.bits = bits, .group_size = 32, .scale_dtype = at::kFloat}; }

FormatOf formats(const std::vector<int>& bits) {
  return [bits](int64_t layer, int64_t columns) { return format_at(bits[static_cast<size_t>(layer)], columns); };
}

// The model with the quantized matrices in their places.
struct Quantized {
  MemoryCheckpoint model;
  std::map<std::string, QuantizedMatrix> matrices;
};

template <typename Quantize>
Quantized quantized(const MemoryCheckpoint& model, const Quantize& quantize) {
  Quantized result{MemoryCheckpoint(model.config()), {}};
  for (const TensorInfo& info : model.tensors())
    result.model.put(info.name, model.load(info.name, info.shape, at::kFloat));
  quantize([&](const MatrixRows& rows) {
    const std::string name = layer_tensor_name(rows.layer, rows.module + ".weight");
    EXPECT_EQ(rows.first_row, 0) << name << " is small enough to come at once";
    EXPECT_TRUE(result.matrices.emplace(name, rows.matrix).second) << name << " came twice";
    result.model.put(name, rows.matrix.values());
  });
  return result;
}

Quantized rounded(const MemoryCheckpoint& model, const std::vector<int>& bits) {
  return quantized(model,
                   [&](const MatrixSink& sink) { quantize_by_rounding(model, formats(bits), sink, no_progress()); });
}

Quantized by_gptq(const MemoryCheckpoint& model, const TokenWindows& windows, const std::vector<int>& bits,
                  const GptqOptions& options = {}) {
  return quantized(model, [&](const MatrixSink& sink) {
    const LayerWalk walk(model, {.chunk_tokens = 64}, windows.length, no_progress());
    quantize_by_gptq(walk, windows, formats(bits), options, sink);
  });
}

at::Tensor final_stream(const MemoryCheckpoint& model, const TokenWindows& windows) {
  const LayerWalk walk(model, {.chunk_tokens = 64}, windows.length, no_progress());
  return testing::all_streams(walk, windows).back();
}

double distance(const MemoryCheckpoint& a, const MemoryCheckpoint& b, const TokenWindows& windows) {
  return (final_stream(a, windows) - final_stream(b, windows)).norm().item<double>();
}

TEST(QuantizeByRounding, RoundsEveryMatrixOfTheLayersAndNothingElse) {
  const MemoryCheckpoint model = tiny_model();
  const Quantized result = rounded(model, {8, 4, 3});
  EXPECT_EQ(result.matrices.size(), 3U * 7U);
  for (const TensorInfo& info : model.tensors()) {
    const at::Tensor before = model.load(info.name, info.shape, at::kFloat);
    const auto found = result.matrices.find(info.name);
    ASSERT_EQ(found != result.matrices.end(), info.name.ends_with("_proj.weight")) << info.name;
    if (found == result.matrices.end()) continue;
    EXPECT_TRUE(found->second.values().equal(round_to_nearest(before, found->second.format).values())) << info.name;
  }
}

// 3 bits and rows that are no multiple of 32 at the end: codes and zero points cross words.
TEST(QuantizeByRounding, WritesLargeMatricesInPartsAsItWouldAtOnce) {
  const MemoryCheckpoint model = tiny_model({.hidden_size = 520, .layers = 1, .heads = 4, .kv_heads = 4});
  const auto format_of = [](int64_t, int64_t) {
    return QuantFormat{.bits = 3, .group_size = 40, .scale_dtype = at::kFloat};
  };
  const TemporaryFolder folder;
  const std::filesystem::path out = folder.path() / "out";
  int64_t parts = 0;
  {
    CheckpointWriter writer(out, packed_tensors(model.config(), at::kFloat, format_of), false);
    quantize_by_rounding(
        model, format_of,
        [&](const MatrixRows& rows) {
          ++parts;
          write_packed(rows, writer);
        },
        no_progress());
    EXPECT_GT(parts, 7);
    write_packed_shapes(model.config(), writer);
    for (const TensorInfo& info : model.tensors()) {
      if (!is_linear_weight(info.name)) writer.write(info.name, model.load(info.name, info.shape, at::kFloat));
    }
    OrderedJson config = write_config(model.config(), "float32");
    config["quantization_config"] = describe_packing(model.config(), format_of);
    writer.write_text("config.json", to_text(config));
    writer.commit();
  }
  const auto written = open_checkpoint(out);
  for (const TensorInfo& info : model.tensors()) {
    const at::Tensor before = model.load(info.name, info.shape, at::kFloat);
    const at::Tensor after = written->load(info.name, info.shape, at::kFloat);
    const bool is_packed = is_linear_weight(info.name);
    EXPECT_TRUE(after.equal(is_packed ? round_to_nearest(before, format_of(0, info.shape.back())).values() : before))
        << info.name;
  }
}

TEST(QuantizeByGptq, GivesMatricesOfTheSameShapesAndFormats) {
  const MemoryCheckpoint model = tiny_model({.qkv_bias = true});
  const Quantized result = by_gptq(model, random_windows(8, 16, kVocab), {8, 4, 2});
  EXPECT_EQ(result.matrices.size(), 3U * 7U);
  for (const auto& [name, matrix] : result.matrices) {
    EXPECT_EQ(matrix.values().sizes().vec(), model.find(name)->shape) << name;
    EXPECT_EQ(matrix.format.bits, name.find("layers.0") != std::string::npos   ? 8
                                  : name.find("layers.1") != std::string::npos ? 4
                                                                               : 2);
  }
}

TEST(QuantizeByGptq, StaysNearerToTheModelThanRounding) {
  const MemoryCheckpoint model = tiny_model();
  const TokenWindows windows = random_windows(24, 32, kVocab);
  for (const int bits : {2, 3, 4}) {
    const std::vector<int> alike(3, bits);
    EXPECT_LT(distance(by_gptq(model, windows, alike).model, model, windows),
              0.9 * distance(rounded(model, alike).model, model, windows))
        << bits;
  }
}

TEST(QuantizeByGptq, OfEightBitsIsRounding) {
  const MemoryCheckpoint model = tiny_model();
  const Quantized a = by_gptq(model, random_windows(4, 16, kVocab), {8, 8, 8}), b = rounded(model, {8, 8, 8});
  for (const auto& [name, matrix] : a.matrices) EXPECT_TRUE(matrix.codes.equal(b.matrices.at(name).codes)) << name;
}

TEST(QuantizeByGptq, RefusesAStreamWithNaN) {
  MemoryCheckpoint model = tiny_model();
  model.at("model.layers.1.input_layernorm.weight").fill_(1e38);
  EXPECT_THROW(by_gptq(model, random_windows(4, 16, kVocab), {4, 4, 4}), Error);
}

TEST(PlannedCheckpoint, IsTheModelThatItsPlanMakes) {
  const MemoryCheckpoint model = tiny_model();
  const TokenWindows windows = random_windows(6, 16, kVocab);
  const LayerWalk walk(model, {.chunk_tokens = 64}, windows.length, no_progress());
  for (const TokenWindows* calibration : {static_cast<const TokenWindows*>(nullptr), &windows}) {
    const TrialQuantizer quantizer{format_at, calibration};
    const std::vector<int> bits = {3, 4, 3};
    const QuantizedLevels levels(walk, windows, quantizer, {4, 3});
    const PlannedCheckpoint planned(model, levels, bits);
    EXPECT_NEAR(loss_of(planned, windows), plan_losses(walk, windows, quantizer, {bits}).front(), 1e-6);
  }
  const QuantizedLevels levels(walk, windows, {format_at}, {8, 2});
  const PlannedCheckpoint planned(model, levels, {8, 2, 8});
  EXPECT_LT((planned.load("model.layers.0.mlp.up_proj.weight", {96, 32}, at::kFloat) -
             model.load("model.layers.0.mlp.up_proj.weight", {96, 32}, at::kFloat))
                .abs()
                .max()
                .item<float>(),
            0.01F);
  const at::Tensor rows = planned.load_rows("model.layers.1.mlp.up_proj.weight", {96, 32}, 5, 9, at::kFloat);
  EXPECT_TRUE(rows.equal(
      round_to_nearest(model.load("model.layers.1.mlp.up_proj.weight", {96, 32}, at::kFloat), format_at(2, 32))
          .values()
          .narrow(0, 5, 4)));
}

TEST(PlanLosses, AreThoseOfTheModelsThatThePlansMake) {
  const MemoryCheckpoint model = tiny_model();
  const TokenWindows windows = random_windows(6, 16, kVocab);
  const LayerWalk walk(model, {.chunk_tokens = 64}, windows.length, no_progress());
  const std::vector<std::vector<int>> plans = {{8, 8, 8}, {8, 2, 8}, {2, 8, 3}, {8, 2, 3}, {8, 8, 8}};
  const std::vector<double> losses = plan_losses(walk, windows, {format_at}, plans);
  ASSERT_EQ(losses.size(), plans.size());
  for (size_t i = 0; i < plans.size(); ++i)
    EXPECT_NEAR(losses[i], loss_of(rounded(model, plans[i]).model, windows), 1e-6) << i;
}

TEST(PlanLosses, WithCalibrationFitEveryMatrixToWhatItReads) {
  const MemoryCheckpoint model = tiny_model({.layers = 1});
  const TokenWindows windows = random_windows(6, 16, kVocab), calibration = random_windows(12, 16, kVocab, 9);
  const LayerWalk walk(model, {.chunk_tokens = 64}, windows.length, no_progress());
  const std::vector<double> losses = plan_losses(walk, windows, {format_at, &calibration}, {{3}});
  // By hand: the moments of the layer as it is.
  const ResidualStream stream = walk.embed(calibration);
  const at::Tensor x = stream.gather();
  const DecoderLayer layer = load_decoder_layer(model, 0, at::kFloat, at::kCPU);
  const at::Tensor middle = forward_half(kAttentionHalf, layer, walk.context(), x);
  const auto fitted = [&](const at::Tensor& weight, const at::Tensor& read) {
    const at::Tensor rows = read.reshape({-1, read.size(-1)}).to(at::kDouble);
    const QuantFormat format = format_at(3, weight.size(1));
    return Gptq(at::matmul(rows.t(), rows), 32, {}).quantize(weight, format).values();
  };
  DecoderLayer quantized = layer;
  quantized.qkv.weight = fitted(layer.qkv.weight, half_input(kAttentionHalf, layer, walk.context(), x));
  quantized.o_proj.weight = fitted(layer.o_proj.weight, half_inner(kAttentionHalf, layer, walk.context(), x));
  quantized.gate_up.weight = fitted(layer.gate_up.weight, half_input(kMlpHalf, layer, walk.context(), middle));
  quantized.down_proj.weight = fitted(layer.down_proj.weight, half_inner(kMlpHalf, layer, walk.context(), middle));
  MemoryCheckpoint expected = tiny_model({.layers = 1});
  for (const auto& [suffix, values] : layer_tensors(quantized))
    expected.at(layer_tensor_name(0, suffix)) = values.clone();
  // fp32 sums of moments: a code may round to the other side here and there.
  EXPECT_NEAR(losses.front(), loss_of(expected, windows), 2e-3);
}

TEST(PlanLosses, WithNoBitsAreThoseOfTheModelAsItIs) {
  const MemoryCheckpoint model = tiny_model();
  const TokenWindows windows = random_windows(6, 16, kVocab);
  const LayerWalk walk(model, {.chunk_tokens = 64}, windows.length, no_progress());
  const std::vector<double> losses = plan_losses(walk, windows, {format_at, &windows}, {{0, 0, 0}});
  EXPECT_NEAR(losses.front(), loss_of(model, windows), 1e-6);
}

TEST(SearchPlan, LowersTheLayersThatHurtLeast) {
  const MemoryCheckpoint model = tiny_model({.layers = 4});
  const TokenWindows windows = random_windows(16, 16, kVocab);
  const LayerWalk walk(model, {.chunk_tokens = 64}, windows.length, no_progress());
  const auto no_phase = [](const std::string&) { return JournalPhase(); };
  const SearchResult found = search_plan(walk, windows, {format_at}, {8, 2}, 5.0, 2, no_phase);
  EXPECT_DOUBLE_EQ(average_bits(model.config(), found.bits), 5.0);
  ASSERT_EQ(found.steps.size(), 2U);
  // The first step is the best single one.
  std::vector<double> single;
  for (int64_t layer = 0; layer < 4; ++layer) {
    std::vector<int> bits(4, 8);
    bits[static_cast<size_t>(layer)] = 2;
    single.push_back(loss_of(rounded(model, bits).model, windows));
  }
  EXPECT_EQ(found.steps.front().layer, std::ranges::min_element(single) - single.begin());
}

TEST(SearchPlan, GoesDownSeveralLevels) {
  const MemoryCheckpoint model = tiny_model();
  const TokenWindows windows = random_windows(4, 16, kVocab);
  const LayerWalk walk(model, {.chunk_tokens = 64}, windows.length, no_progress());
  const auto no_phase = [](const std::string&) { return JournalPhase(); };
  const SearchResult found = search_plan(walk, windows, {format_at}, {8, 4, 2}, 2.0, 1, no_phase);
  EXPECT_EQ(found.bits, (std::vector<int>{2, 2, 2}));
}

}  // namespace
}  // namespace dynslice
