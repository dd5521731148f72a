#include <gtest/gtest.h>

#include <cmath>

#include "dynslice/model/forward.h"
#include "dynslice/tensor/kernels.h"
#include "tiny_model.h"

namespace dynslice {
namespace {

using testing::largest_difference;
using testing::MemoryCheckpoint;
using testing::tiny_model;

// A decoder layer written the slow way, in fp64 and head by head, from the tensors' names: the oracle.
class NaiveLayer {
 public:
  NaiveLayer(MemoryCheckpoint& checkpoint, int64_t index) : checkpoint_(checkpoint), index_(index) {}

  at::Tensor forward(const at::Tensor& x32) {
    const at::Tensor x = x32.to(at::kDouble);
    std::vector<at::Tensor> windows;
    for (const at::Tensor& window : x.unbind(0)) {
      const at::Tensor middle = window + attention(norm(window, "input_layernorm"));
      windows.push_back(middle + mlp(norm(middle, "post_attention_layernorm")));
    }
    return at::stack(windows);
  }

 private:
  at::Tensor tensor(const std::string& suffix) {
    return checkpoint_.at(layer_tensor_name(index_, suffix)).to(at::kDouble);
  }

  at::Tensor linear(const std::string& module, const at::Tensor& x) {
    at::Tensor y = at::matmul(x, tensor(module + ".weight").t());
    if (checkpoint_.find(layer_tensor_name(index_, module + ".bias")) != nullptr) y = y + tensor(module + ".bias");
    return y;
  }

  at::Tensor norm(const at::Tensor& x, const std::string& module) {
    const at::Tensor mean_square = x.square().mean(-1, true);
    return x / (mean_square + checkpoint_.config().rms_norm_eps).sqrt() * tensor(module + ".weight");
  }

  at::Tensor rope(const at::Tensor& head) {  // [T, head_dim]
    const int64_t half = head.size(1) / 2;
    at::Tensor rotated = at::empty_like(head);
    for (int64_t t = 0; t < head.size(0); ++t) {
      for (int64_t j = 0; j < half; ++j) {
        const double angle =
            static_cast<double>(t) *
            std::pow(checkpoint_.config().rope.theta, -2.0 * static_cast<double>(j) / static_cast<double>(2 * half));
        const double a = head[t][j].item<double>(), b = head[t][j + half].item<double>();
        rotated[t][j] = a * std::cos(angle) - b * std::sin(angle);
        rotated[t][j + half] = b * std::cos(angle) + a * std::sin(angle);
      }
    }
    return rotated;
  }

  at::Tensor attention(const at::Tensor& x) {
    const ModelConfig& config = checkpoint_.config();
    const LayerShape& shape = config.layers[static_cast<size_t>(index_)];
    const at::Tensor q = linear("self_attn.q_proj", x), k = linear("self_attn.k_proj", x),
                     v = linear("self_attn.v_proj", x);
    const int64_t d = shape.head_dim, length = x.size(0), group = shape.num_attention_heads / shape.num_key_value_heads;
    std::vector<at::Tensor> heads;
    for (int64_t h = 0; h < shape.num_attention_heads; ++h) {
      const at::Tensor query = rope(q.narrow(1, h * d, d)), key = rope(k.narrow(1, h / group * d, d));
      at::Tensor weights = at::matmul(query, key.t()) / std::sqrt(static_cast<double>(d));
      for (int64_t i = 0; i < length; ++i) {
        for (int64_t j = 0; j < length; ++j) {
          const bool hidden = j > i || (config.sliding_window && i - j >= *config.sliding_window);
          if (hidden) weights[i][j] = -INFINITY;
        }
      }
      heads.push_back(at::matmul(weights.softmax(-1), v.narrow(1, h / group * d, d)));
    }
    return linear("self_attn.o_proj", at::cat(heads, 1));
  }

  at::Tensor mlp(const at::Tensor& x) {
    const at::Tensor gate = linear("mlp.gate_proj", x);
    return linear("mlp.down_proj", gate * gate.sigmoid() * linear("mlp.up_proj", x));
  }

  MemoryCheckpoint& checkpoint_;
  int64_t index_;
};

at::Tensor forward(const MemoryCheckpoint& checkpoint, int64_t index, const at::Tensor& x,
                   at::ScalarType dtype = at::kFloat) {
  const LayerContext context = make_layer_context(checkpoint.config(), x.size(1), at::kCPU);
  const DecoderLayer layer = load_decoder_layer(checkpoint, index, dtype, at::kCPU);
  return forward_layer(layer, context, x);
}

// fp32 sums over at most 96 terms of size about 1: errors stay below 1e-4.
constexpr double kTolerance = 1e-4;

TEST(DecoderLayer, EqualsANaiveForwardInDoublePrecision) {
  for (const bool biases : {false, true}) {
    MemoryCheckpoint model = tiny_model({.all_biases = biases});
    const at::Tensor x = at::randn({2, 11, 32});
    EXPECT_LT(largest_difference(forward(model, 1, x), NaiveLayer(model, 1).forward(x)), kTolerance)
        << "biases: " << biases;
  }
}

TEST(DecoderLayer, SeesOnlyTheSlidingWindow) {
  testing::TinyOptions options;
  MemoryCheckpoint dense = tiny_model(options);
  ModelConfig config = dense.config();
  config.sliding_window = 3;
  MemoryCheckpoint sliding(config);
  for (const TensorInfo& info : dense.tensors()) sliding.put(info.name, dense.at(info.name));
  const at::Tensor x = at::randn({1, 9, 32});
  EXPECT_LT(largest_difference(forward(sliding, 0, x), NaiveLayer(sliding, 0).forward(x)), kTolerance);
  EXPECT_GT(largest_difference(forward(sliding, 0, x), forward(dense, 0, x)), 0.01);
}

TEST(DecoderLayer, DoesNotDependOnHowWindowsAreBatched) {
  MemoryCheckpoint model = tiny_model();
  const at::Tensor x = at::randn({5, 16, 32});
  const at::Tensor together = forward(model, 0, x);
  for (int64_t w = 0; w < 5; ++w) {
    EXPECT_LT(largest_difference(forward(model, 0, x.narrow(0, w, 1)), together.narrow(0, w, 1)), kTolerance);
  }
}

TEST(DecoderLayer, IsTheSameAfterFoldingTheNorms) {
  MemoryCheckpoint model = tiny_model({.all_biases = true});
  const at::Tensor x = at::randn({1, 8, 32});
  const LayerContext context = make_layer_context(model.config(), 8, at::kCPU);
  DecoderLayer layer = load_decoder_layer(model, 0, at::kFloat, at::kCPU);
  const at::Tensor before = forward_layer(layer, context, x);
  fold_norms(layer);
  EXPECT_FALSE(layer.input_norm.defined());
  EXPECT_LT(largest_difference(forward_layer(layer, context, x), before), kTolerance);
}

TEST(DecoderLayer, InBfloat16StaysNearItself) {
  MemoryCheckpoint model = tiny_model();
  const at::Tensor x = at::randn({1, 8, 32});
  const at::Tensor exact = forward(model, 0, x);
  // bf16 has 8 bits of mantissa: relative errors of a few parts in a thousand of the branch outputs.
  EXPECT_LT((forward(model, 0, x, at::kBFloat16) - exact).norm().item<double>(), 0.03 * exact.norm().item<double>());
}

TEST(Rope, Llama3ScalingStretchesLongWavelengthsOnly) {
  ModelConfig config = testing::tiny_config({.hidden_size = 128, .heads = 2});
  config.rope.theta = 500000;
  const LayerContext plain = make_layer_context(config, 2, at::kCPU);
  config.rope.scaling = RopeScalingKind::kLlama3;
  config.rope.factor = 8;
  config.rope.original_max_position_embeddings = 8192;
  const LayerContext scaled = make_layer_context(config, 2, at::kCPU);
  const auto angle = [](const LayerContext& context, int64_t pair) {
    return std::asin(context.rotary.sin[1][pair].item<double>());
  };
  EXPECT_NEAR(angle(scaled, 5), angle(plain, 5), 1e-6);              // wavelength far below 8192 / 4
  EXPECT_NEAR(angle(scaled, 31) * 8 / angle(plain, 31), 1.0, 1e-4);  // far above 8192
}

TEST(Kernels, MatmulTakesMatricesInAnyLayout) {
  at::manual_seed(4);
  const at::Tensor left = at::randn({90, 300}), right = at::randn({300, 130});
  const at::Tensor lefts[] = {left, left.t().contiguous().t(), at::randn({90, 400}).narrow(1, 50, 300),
                              at::randn({400, 90}).narrow(0, 9, 300).t(), at::randn({2, 300})};
  const at::Tensor rights[] = {right, right.t().contiguous().t(), at::randn({300, 200}).narrow(1, 7, 130),
                               at::randn({130, 500}).narrow(1, 20, 300).t()};
  for (const at::Tensor& a : lefts) {
    for (const at::Tensor& b : rights)
      EXPECT_LT(largest_difference(kernels::matmul(a, b), at::matmul(a.to(at::kDouble), b.to(at::kDouble))), 1e-3);
  }
  const at::Tensor many = at::randn({1100, 1100}), large = at::randn({1100, 1000});
  EXPECT_LT(largest_difference(kernels::matmul(many, large), at::matmul(many.to(at::kDouble), large.to(at::kDouble))),
            1e-2);
}

TEST(Kernels, RmsNormDividesByTheGivenDivisor) {
  const at::Tensor x = at::randn({7, 24});
  const at::Tensor expected = x / (x.square().sum(-1, true) / 32.0 + 1e-5).sqrt();
  EXPECT_LT(largest_difference(kernels::rms_norm(x, {}, 32, 1e-5, at::kFloat), expected), 1e-6);
}

// Other devices have no loops of ours, and nor have other dtypes on the CPU.
TEST(Kernels, ComposedOfOperatorsGiveWhatTheLoopsGive) {
  at::manual_seed(9);
  const auto wide = [](const at::Tensor& x) { return x.to(at::kDouble); };
  const at::Tensor x = at::randn({2, 5, 24}), weight = at::randn({24});
  for (const int64_t divisor : {24, 32}) {
    for (const at::Tensor& scale : {at::Tensor(), weight}) {
      EXPECT_LT(largest_difference(kernels::rms_norm(wide(x), scale, divisor, 0.1, at::kFloat),
                                   kernels::rms_norm(x, scale, divisor, 0.1, at::kFloat)),
                1e-5);
    }
  }
  const LayerContext context = make_layer_context(testing::tiny_config({}), 5, at::kCPU);
  at::Tensor qkv = at::randn({2, 5, 8, 8}), wide_qkv = wide(qkv);
  kernels::apply_rope_(qkv, 6, context.rotary.cos, context.rotary.sin);
  kernels::apply_rope_(wide_qkv, 6, context.rotary.cos, context.rotary.sin);
  EXPECT_LT(largest_difference(wide_qkv, qkv), 1e-5);
  EXPECT_LT(largest_difference(kernels::act_mul(wide(x), Activation::kSilu), kernels::act_mul(x, Activation::kSilu)),
            1e-5);
  for (const int64_t narrow : {24, 20, 30}) {
    const at::Tensor beside = at::randn({2, 5, narrow}), correction = at::randn({2, 5, 7});
    EXPECT_LT(largest_difference(kernels::add_fitted(wide(x), beside, wide(correction)),
                                 kernels::add_fitted(x.clone(), beside, correction)),
              1e-5);
  }
}

TEST(Kernels, SiluAndLogSumExpAgreeWithDoublePrecisionOverTheWholeRange) {
  const at::Tensor gate = at::linspace(-120, 120, 4001).view({1, -1});
  const at::Tensor both = at::cat({gate, at::ones_like(gate)}, 1);
  const at::Tensor exact = gate.to(at::kDouble) * gate.to(at::kDouble).sigmoid();
  EXPECT_LT(largest_difference(kernels::act_mul(both, Activation::kSilu), exact), 1e-5);

  const at::Tensor logits = at::randn({3, 5000}) * 30;
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const at::Tensor given = logits.to(dtype);
    EXPECT_LT(largest_difference(kernels::logsumexp_rows(given), at::logsumexp(given.to(at::kDouble), {-1})), 1e-6);
  }
}

}  // namespace
}  // namespace dynslice
