#include "dynslice/model/tensor_layout.h"

#include "dynslice/model/decoder_layer.h"

namespace dynslice {
namespace {

// Collects the tensors of one layer.
class LayerLayout {
 public:
  LayerLayout(std::vector<OutputTensor>& tensors, int64_t index, at::ScalarType dtype)
      : tensors_(tensors), index_(index), dtype_(dtype) {}

  void tensor(const std::string& suffix, std::vector<int64_t> shape) {
    tensors_.push_back({layer_tensor_name(index_, suffix), std::move(shape), dtype_});
  }
  void linear(const std::string& module, int64_t out, int64_t in, bool bias) {
    tensor(module + ".weight", {out, in});
    if (bias) tensor(module + ".bias", {out});
  }
  void shortcut(const std::string& module, const ShortcutShape& shortcut, int64_t in, int64_t out) {
    if (shortcut.kind == ShortcutKind::kMatrix) tensor(module + ".weight", {out, in});
    const bool low_rank = shortcut.kind == ShortcutKind::kLowRank;
    if (shortcut.rank == 0) return;
    if (low_rank || shortcut.kind == ShortcutKind::kSymmetric) tensor(module + ".down.weight", {shortcut.rank, in});
    if (low_rank) tensor(module + ".up.weight", {out, shortcut.rank});
  }

 private:
  std::vector<OutputTensor>& tensors_;
  int64_t index_;
  at::ScalarType dtype_;
};

void add_layer(std::vector<OutputTensor>& tensors, const ModelConfig& config, int64_t index, at::ScalarType dtype) {
  const LayerShape& shape = config.layers.at(static_cast<size_t>(index));
  const int64_t q = shape.num_attention_heads * config.head_dim, kv = shape.num_key_value_heads * config.head_dim;
  LayerLayout layer(tensors, index, dtype);
  if (shape.has_attention()) {
    if (shape.has_norm_weights) layer.tensor("input_layernorm.weight", {shape.input_width});
    layer.linear("self_attn.q_proj", q, shape.input_width, config.qkv_bias);
    layer.linear("self_attn.k_proj", kv, shape.input_width, config.qkv_bias);
    layer.linear("self_attn.v_proj", kv, shape.input_width, config.qkv_bias);
    layer.linear("self_attn.o_proj", shape.middle_width, q, config.o_bias);
  }
  if (shape.has_norm_weights) layer.tensor("post_attention_layernorm.weight", {shape.middle_width});
  if (shape.is_gated) layer.linear("mlp.gate_proj", shape.intermediate_size, shape.middle_width, config.mlp_bias);
  layer.linear("mlp.up_proj", shape.intermediate_size, shape.middle_width, config.mlp_bias);
  layer.linear("mlp.down_proj", shape.output_width, shape.intermediate_size, config.mlp_bias);
  layer.shortcut("attn_shortcut", shape.attn_shortcut, shape.input_width, shape.middle_width);
  layer.shortcut("mlp_shortcut", shape.mlp_shortcut, shape.middle_width, shape.output_width);
}

}  // namespace

std::vector<OutputTensor> linear_weights(const ModelConfig& config, int64_t layer, at::ScalarType dtype) {
  std::vector<OutputTensor> tensors;
  add_layer(tensors, config, layer, dtype);
  std::erase_if(tensors, [](const OutputTensor& tensor) { return !is_linear_weight(tensor.name); });
  return tensors;
}

bool is_linear_weight(const std::string& name) { return name.ends_with("_proj.weight"); }

std::string describe_shape(const std::vector<int64_t>& shape) {
  std::string text;
  for (const int64_t size : shape) text += (text.empty() ? "" : ", ") + std::to_string(size);
  return "[" + text + "]";
}

std::vector<OutputTensor> checkpoint_tensors(const ModelConfig& config, at::ScalarType dtype) {
  std::vector<OutputTensor> tensors;
  tensors.push_back({"model.embed_tokens.weight", {config.vocab_size, config.embedding_columns()}, dtype});
  if (config.has_embedding_rotation) {
    tensors.push_back({"model.embed_rotation.weight", {config.embedding_width, config.hidden_size}, dtype});
  }
  for (int64_t i = 0; i < config.num_layers(); ++i) add_layer(tensors, config, i, dtype);
  if (config.has_final_norm_weight) tensors.push_back({"model.norm.weight", {config.head_width}, dtype});
  if (config.has_head_rotation) {
    tensors.push_back({"model.head_rotation.weight", {config.hidden_size, config.head_width}, dtype});
  }
  if (!config.tie_word_embeddings) {
    tensors.push_back({"lm_head.weight", {config.vocab_size, config.head_columns()}, dtype});
  }
  return tensors;
}

int64_t count_values(const OutputTensor& tensor) {
  int64_t values = 1;
  for (const int64_t size : tensor.shape) values *= size;
  return values;
}

uint64_t count_bytes(const OutputTensor& tensor) {
  return static_cast<uint64_t>(count_values(tensor)) * c10::elementSize(tensor.dtype);
}

}  // namespace dynslice
