// A small random model that lives in memory, for tests of what walks over models.
#pragma once

#include <ATen/ops/randint.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "aten.h"
#include "dynslice/model/checkpoint.h"
#include "dynslice/model/tensor_layout.h"
#include "dynslice/walk/head.h"
#include "dynslice/walk/layer_walk.h"

namespace dynslice::testing {

struct TinyOptions {
  int64_t hidden_size = 32;
  int64_t layers = 3;
  int64_t heads = 4;
  int64_t kv_heads = 2;
  int64_t vocab = 61;
  bool tied = false;
  bool qkv_bias = false;
  bool all_biases = false;
  bool head_norms = false;  // of queries and keys, as Qwen3 has them
  bool gemma = false;       // Gemma 3: those, norms of branches, two ropes and windows, GELU, a scaled embedding
  bool gemma4 = false;      // Gemma 4: heads of layers that see all their own, keys for values, scales of layers
  bool olmo = false;        // OLMo 2: norms behind attention and MLP alone, and of all queries and keys together
  bool granite = false;     // Granite: multipliers of scores, embedding, branches and logits
  bool opt = false;         // OPT: layer norms, a matrix of positions, ReLU without gates, biases everywhere
  bool delta = false;       // Qwen3.5: gated delta nets, and attention with output gates in the last layer
  bool caps = false;        // Gemma 2's caps of scores and logits
  uint64_t seed = 7;
};

inline void make_gemma(ModelConfig& config) {
  config.model_type = "gemma3_text";
  config.activation = Activation::kGeluTanh;
  config.attention_scale = 0.6 / std::sqrt(static_cast<double>(config.layers.front().head_dim));
  config.embedding_scale = std::sqrt(static_cast<double>(config.hidden_size));
  config.rope.theta = 50000;
  config.sliding_rope.emplace().theta = 1000;
  config.sliding_window = 5;
  for (size_t index = 0; index < config.layers.size(); ++index) {
    config.layer_is_sliding.push_back(index % 2 == 0);
    config.layers[index].query_key_norm = QueryKeyNorm::kHead;
    config.layers[index].has_branch_norms = true;
  }
}

inline void make_gemma4(ModelConfig& config) {
  make_gemma(config);
  config.model_type = "gemma4_text";
  config.attention_scale = 1;
  config.rope.turning_share = 0.5;
  for (size_t index = 0; index < config.layers.size(); ++index) {
    LayerShape& shape = config.layers[index];
    shape.has_value_norm = shape.has_layer_scale = true;
    if (config.slides(index)) continue;
    shape.head_dim += 4;
    shape.has_values = false;
  }
}

inline void make_olmo(ModelConfig& config) {
  config.model_type = "olmo2";
  for (LayerShape& shape : config.layers) {
    shape.query_key_norm = QueryKeyNorm::kWhole;
    shape.has_input_norms = false;
    shape.has_branch_norms = true;
  }
}

inline void make_granite(ModelConfig& config) {
  config.model_type = "granite";
  config.attention_scale = 0.2;
  config.embedding_scale = 1.5;
  config.branch_scale = 0.3;
  config.logit_scale = 0.7;
}

inline void make_opt(ModelConfig& config) {
  config.model_type = "opt";
  config.has_centred_norms = config.qkv_bias = config.o_bias = config.mlp_bias = true;
  config.activation = Activation::kRelu;
  config.first_position_row = 2;
  config.position_rows = 2 + config.max_position_embeddings;
  config.layer_is_unrotated.assign(config.layers.size(), true);
  for (LayerShape& shape : config.layers) {
    shape.is_gated = false;
    shape.num_key_value_heads = shape.num_attention_heads;
  }
}

inline void make_delta(ModelConfig& config) {
  config.model_type = "qwen3_5_text";
  config.rotary_dim = config.layers.front().head_dim / 2;
  for (LayerShape& shape : config.layers) {
    shape.query_key_norm = QueryKeyNorm::kHead;
    shape.has_output_gate = true;
    if (&shape != &config.layers.back()) shape.delta = {2, 4, 6, 5, 4};
  }
}

inline ModelConfig tiny_config(const TinyOptions& options) {
  ModelConfig config;
  config.model_type = options.head_norms ? "qwen3" : "llama";
  config.vocab_size = options.vocab;
  config.hidden_size = config.embedding_width = config.head_width = options.hidden_size;
  config.max_position_embeddings = 128;
  config.rms_norm_eps = 1e-5;
  config.tie_word_embeddings = options.tied;
  config.qkv_bias = options.qkv_bias || options.all_biases;
  config.o_bias = config.mlp_bias = options.all_biases;
  const LayerShape shape{options.hidden_size,
                         options.hidden_size,
                         options.hidden_size,
                         3 * options.hidden_size,
                         options.heads,
                         options.kv_heads,
                         options.hidden_size / options.heads,
                         {},
                         {},
                         true,
                         options.head_norms ? QueryKeyNorm::kHead : QueryKeyNorm::kNone};
  config.layers.assign(static_cast<size_t>(options.layers), shape);
  if (options.gemma) make_gemma(config);
  if (options.gemma4) make_gemma4(config);
  if (options.olmo) make_olmo(config);
  if (options.granite) make_granite(config);
  if (options.opt) make_opt(config);
  if (options.delta) make_delta(config);
  if (options.caps) {
    config.score_cap = 1.5;
    config.logit_cap = 2.5;
  }
  return config;
}

// Holds its tensors; what a walk over a sliced model needs can be put in one by one.
class MemoryCheckpoint final : public Checkpoint {
 public:
  explicit MemoryCheckpoint(ModelConfig config) {
    config_ = std::move(config);
    path_ = "tiny";
  }

  void put(const std::string& name, const at::Tensor& values) {
    const at::Tensor kept = values.to(at::kCPU, at::kFloat).contiguous().clone();
    infos_[name] = {name, kept.sizes().vec(), "F32", static_cast<uint64_t>(kept.nbytes())};
    values_[name] = kept;
  }
  at::Tensor& at(const std::string& name) { return values_.at(name); }

  std::vector<TensorInfo> tensors() const override {
    std::vector<TensorInfo> result;
    for (const auto& [name, info] : infos_) result.push_back(info);
    return result;
  }
  const TensorInfo* find(const std::string& name) const override {
    const auto found = infos_.find(name);
    return found == infos_.end() ? nullptr : &found->second;
  }
  std::vector<std::filesystem::path> files() const override { return {}; }
  at::ScalarType storage_dtype() const override { return at::kFloat; }

 protected:
  std::filesystem::path file_of(const TensorInfo&) const override { return path_; }
  at::Tensor read_rows(const TensorInfo& info, int64_t begin, int64_t end, at::ScalarType dtype) const override {
    return values_.at(info.name).narrow(0, begin, end - begin).to(dtype);
  }

 private:
  std::map<std::string, TensorInfo> infos_;
  std::map<std::string, at::Tensor> values_;
};

// Random weights of a trained model's scale; norm weights around 1, so that folding them matters.
inline MemoryCheckpoint random_model(const ModelConfig& config, uint64_t seed = 7) {
  at::manual_seed(seed);
  MemoryCheckpoint checkpoint(config);
  for (const OutputTensor& tensor : checkpoint_tensors(checkpoint.config(), at::kFloat)) {
    const bool norm = tensor.name.find("norm.weight") != std::string::npos;
    const double scale = tensor.name.find("embed") != std::string::npos ? 1.0 : 0.2;
    at::Tensor values = at::randn(tensor.shape, at::kFloat) * scale;
    if (norm) values = values + 1.0;
    checkpoint.put(tensor.name, values);
  }
  return checkpoint;
}

inline MemoryCheckpoint tiny_model(const TinyOptions& options = {}) {
  return random_model(tiny_config(options), options.seed);
}

inline TokenWindows random_windows(int64_t count, int64_t length, int64_t vocab, uint64_t seed = 3) {
  at::manual_seed(seed);
  const at::Tensor ids = at::randint(vocab, {count * length}, at::kInt);
  const int32_t* first = ids.const_data_ptr<int32_t>();
  return {std::vector<int32_t>(first, first + ids.numel()), count, length};
}

// All streams of a walk, x_0 to x_L, as [tokens, d] fp64.
inline std::vector<at::Tensor> all_streams(const LayerWalk& walk, const TokenWindows& windows) {
  ResidualStream stream = walk.embed(windows);
  std::vector<at::Tensor> streams = {stream.gather()};
  walk.run("test", windows.tokens(), [&](LayerStep& step) {
    step.transform(stream, [&](const at::Tensor& x) { return forward_layer(step.layer, step.context, x); });
    streams.push_back(stream.gather());
  });
  for (at::Tensor& x : streams) x = x.reshape({-1, x.size(-1)}).to(at::kDouble);
  return streams;
}

// Of all tokens, [tokens, vocab_size] fp32.
inline at::Tensor logits_of(const Checkpoint& model, const TokenWindows& windows) {
  const LayerWalk walk(model, {.chunk_tokens = 64}, windows.length, no_progress());
  ResidualStream stream = walk.embed(windows);
  run_dense(walk, "test", stream);
  const at::Tensor last = stream.gather();
  return logits(load_head(walk), last.reshape({-1, last.size(-1)}));
}

// Mean negative log-likelihood, nats a token.
inline double loss_of(const Checkpoint& model, const TokenWindows& windows) {
  const LayerWalk walk(model, {.chunk_tokens = 64}, windows.length, no_progress());
  ResidualStream stream = walk.embed(windows);
  run_dense(walk, "test", stream);
  return next_token_losses(walk, load_head(walk), std::move(stream), windows, "losses").mean().item<double>();
}

// The checkpoint has exactly the tensors that its configuration asks for.
inline void expect_tensors_of_configuration(const MemoryCheckpoint& model) {
  std::set<std::string> expected, found;
  for (const OutputTensor& tensor : checkpoint_tensors(model.config(), at::kFloat)) {
    expected.insert(tensor.name);
    ASSERT_NE(model.find(tensor.name), nullptr) << tensor.name;
    EXPECT_EQ(model.find(tensor.name)->shape, tensor.shape) << tensor.name;
  }
  for (const TensorInfo& info : model.tensors()) found.insert(info.name);
  EXPECT_EQ(found, expected);
}

}  // namespace dynslice::testing
