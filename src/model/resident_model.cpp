#include "dynslice/model/resident_model.h"

#include <ATen/ATen.h>

#include "dynslice/support/error.h"
#include "model/kernels.h"

namespace dynslice {
namespace {

int64_t bytes_of(std::initializer_list<at::Tensor> tensors) {
  int64_t bytes = 0;
  for (const at::Tensor& tensor : tensors) {
    if (tensor.defined()) bytes += static_cast<int64_t>(tensor.nbytes());
  }
  return bytes;
}

int64_t bytes_of(const DecoderLayer& layer) {
  return bytes_of({layer.input_norm, layer.qkv.weight, layer.qkv.bias, layer.o_proj.weight, layer.o_proj.bias,
                   layer.post_attention_norm, layer.gate_up.weight, layer.gate_up.bias, layer.down_proj.weight,
                   layer.down_proj.bias, layer.attn_shortcut.weight, layer.attn_shortcut.down, layer.attn_shortcut.up,
                   layer.mlp_shortcut.weight, layer.mlp_shortcut.down, layer.mlp_shortcut.up});
}

}  // namespace

int64_t KeyValueCache::bytes() const {
  int64_t bytes = 0;
  for (const LayerCache& layer : layers) bytes += bytes_of({layer.keys, layer.values});
  return bytes;
}

void KeyValueCache::rewind() {
  for (LayerCache& layer : layers) layer.length = 0;
  length = 0;
}

ResidentModel::ResidentModel(const Checkpoint& checkpoint, const ComputeOptions& options, ProgressSink& progress)
    : config_(checkpoint.config()), options_(options) {
  ProgressTask task(progress, "Loading", config_.num_layers(), "layers");
  for (int64_t index = 0; index < config_.num_layers(); ++index) {
    layers_.push_back(load_decoder_layer(checkpoint, index, options.dtype, options.device));
    task.advance(1);
  }
  embedding_ =
      checkpoint.load("model.embed_tokens.weight", {config_.vocab_size, config_.embedding_columns()}, options.dtype)
          .to(options.device);
  if (config_.has_embedding_rotation) {
    embedding_rotation_ = checkpoint
                              .load("model.embed_rotation.weight",
                                    {config_.embedding_width, config_.embedding_columns()}, at::kFloat)
                              .to(options.device);
  }
  head_ = load_head(LayerWalk(checkpoint, options, 1, no_progress()));
  output_matrix_ = config_.tie_word_embeddings ? embedding_ : head_.load_rows(0, config_.vocab_size);
  head_.load_rows = [matrix = output_matrix_](int64_t begin, int64_t end) { return matrix.narrow(0, begin, end - begin); };
}

int64_t ResidentModel::weight_bytes() const {
  int64_t bytes = bytes_of({embedding_, embedding_rotation_, head_.norm, head_.rotation});
  if (!output_matrix_.is_same(embedding_)) bytes += bytes_of({output_matrix_});
  for (const DecoderLayer& layer : layers_) bytes += bytes_of(layer);
  return bytes;
}

KeyValueCache ResidentModel::make_cache(int64_t batch, int64_t capacity) const {
  if (batch < 1) throw_error(ErrorKind::kUsage, "a batch of ", batch, " sequences: must be at least 1");
  if (capacity < 1 || capacity > config_.max_position_embeddings) {
    throw_error(ErrorKind::kUsage, "sequences of ", capacity, " tokens: must be from 1 to the model's maximum of ",
                config_.max_position_embeddings, " positions");
  }
  KeyValueCache cache;
  cache.capacity = capacity;
  cache.positions = make_position_context(config_, capacity, options_.device);
  const at::ScalarType dtype = options_.device.is_cpu() ? at::kFloat : options_.dtype;
  const auto options = at::TensorOptions().dtype(dtype).device(options_.device);
  for (const LayerShape& shape : config_.layers) {
    const std::vector<int64_t> sizes{batch, shape.num_key_value_heads, capacity, config_.head_dim};
    cache.layers.push_back({at::empty(sizes, options), at::empty(sizes, options), 0});
  }
  return cache;
}

at::Tensor ResidentModel::forward(const at::Tensor& ids, KeyValueCache& cache) const {
  const int64_t length = ids.size(1);
  if (cache.length + length > cache.capacity) {
    throw_error(ErrorKind::kUsage, cache.length + length, " tokens: are more than the ", cache.capacity,
                " that the cache has room for");
  }
  const auto [least, largest] = ids.aminmax();
  if (least.item<int64_t>() < 0 || largest.item<int64_t>() >= config_.vocab_size) {
    throw_error(ErrorKind::kBadInput, "token id ", largest.item<int64_t>(), ": the model's vocabulary has ",
                config_.vocab_size, " entries");
  }
  const LayerContext context = continued_context(cache.positions, cache.length, length);
  at::Tensor x = at::embedding(embedding_, ids.to(options_.device)).to(at::kFloat);
  if (embedding_rotation_.defined()) x = kernels::linear(x, embedding_rotation_, {});
  for (size_t index = 0; index < layers_.size(); ++index) {
    x = forward_mlp(layers_[index], context, forward_attention(layers_[index], context, x, cache.layers[index]));
  }
  cache.length += length;
  return x;
}

at::Tensor ResidentModel::logits(const at::Tensor& stream) const {
  return kernels::linear(head_input(head_, stream), output_matrix_, {}).to(at::kFloat);
}

}  // namespace dynslice
