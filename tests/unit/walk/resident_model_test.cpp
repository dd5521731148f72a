#include "dynslice/walk/resident_model.h"

#include <gtest/gtest.h>

#include "dynslice/support/error.h"
#include "dynslice/tensor/decode_kernels.h"
#include "tiny_model.h"
#include "unit/support/error_matchers.h"

namespace dynslice {
namespace {

using testing::MemoryCheckpoint;
using testing::tiny_model;

constexpr int64_t kVocabulary = 61;
constexpr int64_t kLength = 12;

double largest_difference(const at::Tensor& a, const at::Tensor& b) {
  return (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
}

at::Tensor ids_of(const TokenWindows& windows) {
  return at::tensor(at::ArrayRef<int32_t>(windows.ids), at::kLong).view({windows.count, windows.length});
}

// Logits [B, T, V] of whole windows by the walk over layers, which knows of no cache: the oracle.
at::Tensor walked_logits(const Checkpoint& checkpoint, const TokenWindows& windows) {
  const LayerWalk walk(checkpoint, {}, windows.length, no_progress());
  ResidualStream stream = walk.embed(windows);
  run_dense(walk, "Layers", stream);
  return logits(load_head(walk), stream.gather().view({windows.tokens(), -1}))
      .view({windows.count, windows.length, -1});
}

// The same by a resident model that is given the window in pieces of these lengths.
at::Tensor resident_logits(const Checkpoint& checkpoint, const TokenWindows& windows,
                           const std::vector<int64_t>& pieces) {
  const ResidentModel model(checkpoint, {}, no_progress());
  KeyValueCache cache = model.make_cache(windows.count, windows.length);
  std::vector<at::Tensor> parts;
  int64_t first = 0;
  for (const int64_t piece : pieces) {
    parts.push_back(model.logits(model.forward(ids_of(windows).narrow(1, first, piece), cache)));
    first += piece;
  }
  EXPECT_EQ(cache.length, first);
  return at::cat(parts, 1);
}

// fp32 sums of some hundred terms, in another order: logits of size 10 differ by less than 1e-3.
constexpr double kTolerance = 1e-3;

void expect_pieces_do_not_matter(const Checkpoint& checkpoint, const std::string& what) {
  const TokenWindows windows = testing::random_windows(3, kLength, kVocabulary);
  const at::Tensor expected = walked_logits(checkpoint, windows);
  EXPECT_GT(expected.std().item<double>(), 0.3);
  const std::vector<std::vector<int64_t>> cuts = {
      {12}, {8, 1, 1, 1, 1}, std::vector<int64_t>(kLength, 1), {5, 4, 1, 2}};
  for (const auto& pieces : cuts) {
    EXPECT_LT(largest_difference(resident_logits(checkpoint, windows, pieces), expected), kTolerance)
        << what << ", " << pieces.size() << " pieces";
  }
}

MemoryCheckpoint with_config(const MemoryCheckpoint& source, const ModelConfig& config) {
  MemoryCheckpoint result(config);
  MemoryCheckpoint copy = source;
  for (const TensorInfo& info : source.tensors()) result.put(info.name, copy.at(info.name));
  return result;
}

TEST(ResidentModel, GivesTheWalksLogitsHoweverTheTextIsCut) {
  expect_pieces_do_not_matter(tiny_model(), "llama");
  expect_pieces_do_not_matter(tiny_model({.tied = true}), "tied");
  expect_pieces_do_not_matter(tiny_model({.qkv_bias = true}), "qwen2's biases");
  expect_pieces_do_not_matter(tiny_model({.head_norms = true}), "qwen3's norms of heads");
  expect_pieces_do_not_matter(tiny_model({.tied = true, .gemma = true}), "gemma3's norms, ropes and scales");
  expect_pieces_do_not_matter(tiny_model({.gemma4 = true}), "gemma4's heads");
  expect_pieces_do_not_matter(tiny_model({.gemma = true, .caps = true}), "capped scores and logits");
  expect_pieces_do_not_matter(tiny_model({.olmo = true}), "olmo2's norms");
  expect_pieces_do_not_matter(tiny_model({.granite = true}), "granite's multipliers");
  expect_pieces_do_not_matter(tiny_model({.delta = true}), "qwen3.5's delta nets");
  expect_pieces_do_not_matter(tiny_model({.tied = true, .opt = true}), "opt's layer norms and positions");
}

TEST(ResidentModel, SeesOnlyTheSlidingWindow) {
  const MemoryCheckpoint dense = tiny_model();
  ModelConfig config = dense.config();
  config.sliding_window = 4;
  const MemoryCheckpoint all = with_config(dense, config);
  expect_pieces_do_not_matter(all, "all layers slide");
  const TokenWindows windows = testing::random_windows(1, kLength, kVocabulary);
  EXPECT_GT(largest_difference(walked_logits(all, windows), walked_logits(dense, windows)), 0.01);

  config.layer_is_sliding = {true, false, true};
  expect_pieces_do_not_matter(with_config(dense, config), "every other layer slides");
}

// Narrower from layer to layer, with every kind of residual path.
ModelConfig sliced_config(bool rotated) {
  ModelConfig config = testing::tiny_config({.tied = rotated});
  config.embedding_width = 24;
  config.has_embedding_rotation = config.has_head_rotation = rotated;
  config.has_final_norm_weight = rotated;
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
  return config;
}

TEST(ResidentModel, RunsSlicedModelsOfEveryKind) {
  expect_pieces_do_not_matter(testing::random_model(sliced_config(false)), "sliced, untied");
  expect_pieces_do_not_matter(testing::random_model(sliced_config(true)), "sliced, tied by rotations");
}

TEST(ResidentModel, InBfloat16StaysNearItself) {
  const MemoryCheckpoint checkpoint = tiny_model();
  const TokenWindows windows = testing::random_windows(1, kLength, kVocabulary);
  const at::Tensor exact = walked_logits(checkpoint, windows);
  ComputeOptions options;
  options.dtype = at::kBFloat16;
  const ResidentModel model(checkpoint, options, no_progress());
  KeyValueCache cache = model.make_cache(1, kLength);
  std::vector<at::Tensor> parts;
  for (int64_t t = 0; t < kLength; ++t) {
    parts.push_back(model.logits(model.forward(ids_of(windows).narrow(1, t, 1), cache)));
  }
  // Weights rounded to 8 bits of mantissa, through three layers.
  EXPECT_LT((at::cat(parts, 1) - exact).norm().item<double>(), 0.05 * exact.norm().item<double>());
}

TEST(ResidentModel, CountsATiedMatrixOnce) {
  const int64_t matrix = kVocabulary * 32 * 4;
  const ResidentModel tied(tiny_model({.tied = true}), {}, no_progress());
  const ResidentModel untied(tiny_model(), {}, no_progress());
  EXPECT_EQ(untied.weight_bytes() - tied.weight_bytes(), matrix);
}

TEST(ResidentModel, RefusesWhatDoesNotFit) {
  const ResidentModel model(tiny_model(), {}, no_progress());
  KeyValueCache cache = model.make_cache(1, 4);
  const auto run = [&](const at::Tensor& ids) { model.forward(ids, cache); };
  testing::expect_error(ErrorKind::kUsage, {"129", "128"}, [&] { model.make_cache(1, 129); });
  testing::expect_error(ErrorKind::kUsage, {"batch"}, [&] { model.make_cache(0, 4); });
  testing::expect_error(ErrorKind::kUsage, {"5", "4"}, [&] { run(at::zeros({1, 5}, at::kLong)); });
  testing::expect_error(ErrorKind::kBadInput, {"61"}, [&] { run(at::full({1, 1}, kVocabulary, at::kLong)); });
}

TEST(DecodeKernels, MultiplyFewRowsAsDoublePrecisionDoes) {
  at::manual_seed(5);
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    for (const auto& [out, in] :
         std::vector<std::pair<int64_t, int64_t>>{{1, 41}, {7, 5}, {7, 24}, {96, 64}, {96, 203}, {600, 592}}) {
      const at::Tensor x = at::randn({3, 1, in}), weight = at::randn({out, in}).to(dtype),
                       bias = at::randn({out}).to(dtype);
      const at::Tensor expected = at::linear(x.to(at::kDouble), weight.to(at::kDouble), bias.to(at::kDouble));
      EXPECT_LT(largest_difference(kernels::linear_few_rows(x, weight, bias), expected), 1e-4);
    }
  }
}

TEST(DecodeKernels, AddUpSeveralSumsInOneSweep) {
  at::manual_seed(7);
  const at::Tensor x = at::randn({2, 1, 48}), y = at::randn({2, 1, 30}), passed = at::randn({2, 1, 48});
  const at::Tensor weight = at::randn({700, 48}), more = at::randn({500, 30}), other = at::randn({9, 30});
  const auto sums = kernels::sums_of_few_rows(
      {{.x = x, .weight = weight, .more_x = y, .more_weight = more, .passed = passed}, {.x = y, .weight = other}});
  at::Tensor expected = at::linear(x.to(at::kDouble), weight.to(at::kDouble));
  expected.narrow(-1, 0, 500).add_(at::linear(y.to(at::kDouble), more.to(at::kDouble)));
  expected.narrow(-1, 0, 48).add_(passed);
  ASSERT_EQ(sums.size(), 2U);
  EXPECT_LT(largest_difference(sums[0], expected), 1e-4);
  EXPECT_LT(largest_difference(sums[1], at::linear(y.to(at::kDouble), other.to(at::kDouble))), 1e-4);
}

TEST(DecodeKernels, SubtractFromTheFirstEntries) {
  at::manual_seed(8);
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    for (const auto& [rank, width] : std::vector<std::pair<int64_t, int64_t>>{{1, 700}, {30, 203}, {7, 5}}) {
      const at::Tensor x = at::randn({2, 1, 48}), factors = at::randn({2, 1, rank});
      const at::Tensor weight = at::randn({700, 48}).to(dtype), less = at::randn({rank, width}).to(dtype);
      const auto sums = kernels::sums_of_few_rows({{.x = x, .weight = weight, .less_x = factors, .less_weight = less}});
      at::Tensor expected = at::linear(x.to(at::kDouble), weight.to(at::kDouble));
      expected.narrow(-1, 0, width).sub_(at::matmul(factors.to(at::kDouble), less.to(at::kDouble)));
      EXPECT_LT(largest_difference(sums.front(), expected), 1e-4);
    }
  }
}

TEST(DecodeKernels, AttendToOneQueryAsDoublePrecisionDoes) {
  at::manual_seed(6);
  const at::Tensor q = at::randn({2, 6, 1, 8}) * 3, keys = at::randn({2, 2, 40, 8}), values = at::randn({2, 2, 40, 8});
  for (const auto& [begin, end] : std::vector<std::pair<int64_t, int64_t>>{{0, 1}, {3, 10}, {0, 37}}) {
    const auto seen = [&, first = begin, count = end - begin](const at::Tensor& cached) {
      return cached.narrow(2, first, count).to(at::kDouble).repeat_interleave(3, 1);
    };
    const at::Tensor weights = at::matmul(q.to(at::kDouble), seen(keys).transpose(2, 3)) / std::sqrt(8.0);
    const at::Tensor expected = at::matmul(weights.softmax(-1), seen(values)).transpose(1, 2).reshape({2, 1, 48});
    EXPECT_LT(largest_difference(kernels::attend_one(q, keys, values, begin, end), expected), 1e-5);
    const at::Tensor capped = at::matmul(((weights / 2).tanh() * 2).softmax(-1), seen(values)).transpose(1, 2);
    EXPECT_LT(largest_difference(kernels::attend_one(q, keys, values, begin, end, 2), capped.reshape({2, 1, 48})),
              1e-5);
  }
}

}  // namespace
}  // namespace dynslice
