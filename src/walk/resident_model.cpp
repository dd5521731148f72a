#include "dynslice/walk/resident_model.h"

#include <algorithm>

#include "aten.h"
#include "dynslice/support/error.h"
#include "dynslice/tensor/blocks.h"
#include "dynslice/tensor/kernels.h"
#include "dynslice/tensor/weight_arena.h"

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
  int64_t bytes = 0;
  for_each_tensor(layer, [&](const at::Tensor& tensor) { bytes += bytes_of({tensor}); });
  return bytes;
}

}  // namespace

int64_t KeyValueCache::bytes() const {
  int64_t bytes = 0;
  for (const LayerCache& layer : layers)
    bytes += bytes_of({layer.keys, layer.values, layer.delta.before, layer.delta.memory});
  return bytes;
}

void KeyValueCache::rewind() {
  for (LayerCache& layer : layers) layer.length = 0;
  length = 0;
}

ResidentModel::ResidentModel(const Checkpoint& checkpoint, const ComputeOptions& options, ProgressSink& progress)
    : config_(checkpoint.config()), options_(options) {
  WeightArena arena;
  const bool packs = options.device.is_cpu();
  const auto keep = [&](const at::Tensor& tensor) { return packs && tensor.defined() ? arena.keep(tensor) : tensor; };
  ProgressTask task(progress, "Loading", config_.num_layers(), "layers");
  for (int64_t index = 0; index < config_.num_layers(); ++index) {
    DecoderLayer layer = load_decoder_layer(checkpoint, index, options.dtype, options.device);
    for_each_tensor(layer, [&](at::Tensor& tensor) { tensor = keep(tensor); });
    layers_.push_back(std::move(layer));
    task.advance(1);
  }
  const auto load_matrix = [&](const auto& load_rows, int64_t columns) {
    const std::vector<int64_t> sizes{config_.vocab_size, columns};
    at::Tensor matrix = packs ? arena.zeros(sizes, options.dtype)
                              : at::empty(sizes, at::TensorOptions().dtype(options.dtype).device(options.device));
    for (int64_t begin = 0; begin < config_.vocab_size; begin += kVocabularyBlock) {
      const int64_t end = std::min(config_.vocab_size, begin + kVocabularyBlock);
      matrix.narrow(0, begin, end - begin).copy_(load_rows(begin, end));
    }
    return matrix;
  };
  const std::vector<int64_t> embedding{config_.vocab_size, config_.embedding_columns()};
  embedding_ = load_matrix(
      [&](int64_t begin, int64_t end) {
        return checkpoint.load_rows("model.embed_tokens.weight", embedding, begin, end, options.dtype);
      },
      config_.embedding_columns());
  entrance_ = load_entrance(checkpoint, options);
  entrance_.rotation = keep(entrance_.rotation);
  head_ = load_head(LayerWalk(checkpoint, options, 1, no_progress()));
  head_.norm = keep(head_.norm);
  head_.rotation = keep(head_.rotation);
  output_matrix_ = config_.tie_word_embeddings ? embedding_ : load_matrix(head_.load_rows, config_.head_columns());
  head_.is_in_memory = true;
  head_.load_rows = [matrix = output_matrix_](int64_t begin, int64_t end) {
    return matrix.narrow(0, begin, end - begin);
  };
}

int64_t ResidentModel::weight_bytes() const {
  int64_t bytes = bytes_of({embedding_, entrance_.positions, entrance_.rotation, head_.norm, head_.rotation});
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
    if (shape.is_delta()) {
      cache.layers.emplace_back();
      continue;
    }
    const std::vector<int64_t> sizes{batch, shape.num_key_value_heads, capacity, shape.head_dim};
    cache.layers.push_back({at::empty(sizes, options), at::empty(sizes, options), 0});
  }
  return cache;
}

at::Tensor ResidentModel::embed(const at::Tensor& ids, int64_t first) const {
  const auto [least, largest] = ids.aminmax();
  if (least.item<int64_t>() < 0 || largest.item<int64_t>() >= config_.vocab_size) {
    throw_error(ErrorKind::kBadInput, "token id ", largest.item<int64_t>(), ": the model's vocabulary has ",
                config_.vocab_size, " entries");
  }
  const int64_t batch = ids.size(0), length = ids.size(1);
  const at::Tensor rows = embedding_.index_select(0, ids.to(options_.device).flatten()).to(at::kFloat);
  const at::Tensor positions = at::arange(first, first + length, at::kLong).repeat({batch});
  return entrance_.pass(rows, positions).view({batch, length, config_.embedding_width});
}

at::Tensor ResidentModel::forward(const at::Tensor& ids, KeyValueCache& cache) const {
  const int64_t length = ids.size(1);
  if (cache.length + length > cache.capacity) {
    throw_error(ErrorKind::kUsage, cache.length + length, " tokens: are more than the ", cache.capacity,
                " that the cache has room for");
  }
  at::Tensor x = embed(ids, cache.length);
  const LayerContext context = continued_context(cache.positions, cache.length, length);
  for (size_t index = 0; index < layers_.size(); ++index) {
    x = forward_layer(layers_[index], context, x, cache.layers[index]);
  }
  cache.length += length;
  return x;
}

at::Tensor ResidentModel::logits(const at::Tensor& stream) const {
  return logits_of(head_, head_input(head_, stream), output_matrix_).to(at::kFloat);
}

}  // namespace dynslice
