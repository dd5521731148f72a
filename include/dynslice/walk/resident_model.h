// A whole model in memory, for what goes token by token: generating text and measuring speed. Made of the same
// DecoderLayers as a walk, with a cache of the keys and values of the tokens it has seen.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "dynslice/model/checkpoint.h"
#include "dynslice/model/forward.h"
#include "dynslice/support/progress.h"
#include "dynslice/walk/head.h"
#include "dynslice/walk/layer_walk.h"

namespace dynslice {

// What a model remembers of a batch of sequences of equal length.
struct KeyValueCache {
  std::vector<LayerCache> layers;
  LayerContext positions;  // rotary tables of `capacity` positions
  int64_t capacity = 0;    // positions that it has room for
  int64_t length = 0;      // that are filled

  [[nodiscard]] int64_t bytes() const;
  // Forgets all tokens; the memory stays.
  void rewind();
};

// Guarantees: logits do not depend on how a sequence is cut into calls, up to the rounding of its dtype; layers that
// slide see their window only; const functions may be called from several threads with a cache each.
class ResidentModel {
 public:
  // Loads all weights, in `options.dtype`, onto `options.device`. `checkpoint` is not needed afterwards.
  // Throws as Checkpoint::load does, and kInterrupted when asked to stop.
  ResidentModel(const Checkpoint& checkpoint, const ComputeOptions& options, ProgressSink& progress);

  [[nodiscard]] const ModelConfig& config() const { return config_; }
  [[nodiscard]] const ComputeOptions& options() const { return options_; }
  [[nodiscard]] const std::vector<DecoderLayer>& layers() const { return layers_; }
  [[nodiscard]] const Head& head() const { return head_; }
  // The stream that enters layer 0 for ids [B, T] (int64): [B, T, embedding_width] fp32. Throws kBadInput for an id
  // outside the vocabulary. The first of them is at position `first`.
  [[nodiscard]] at::Tensor embed(const at::Tensor& ids, int64_t first = 0) const;
  // Of all tensors in memory; a matrix that is embedding and head counts once.
  [[nodiscard]] int64_t weight_bytes() const;

  // An empty cache for `batch` sequences of at most `capacity` tokens. Throws kUsage when that is above the model's
  // maximum, or below 1.
  [[nodiscard]] KeyValueCache make_cache(int64_t batch, int64_t capacity) const;

  // Runs ids [B, T] (int64), which continue the sequences of the cache and are added to it, through all layers.
  // Returns the stream that leaves the last one, [B, T, head_width] fp32. Throws kUsage when the cache has no room
  // for them, kBadInput for an id outside the vocabulary.
  [[nodiscard]] at::Tensor forward(const at::Tensor& ids, KeyValueCache& cache) const;

  // Logits fp32 [..., vocab_size] of a stream [..., head_width].
  [[nodiscard]] at::Tensor logits(const at::Tensor& stream) const;

 private:
  ModelConfig config_;
  ComputeOptions options_;
  std::vector<DecoderLayer> layers_;
  at::Tensor embedding_;      // [vocab_size, embedding_columns]
  Entrance entrance_;         // what its rows pass through
  Head head_;                 // its rows are those of output_matrix_
  at::Tensor output_matrix_;  // [vocab_size, head_columns]; embedding_ itself when tied
};

}  // namespace dynslice
