// One walk over the decoder layers: brings each layer's weights, and the residual stream that enters it, to
// whoever asked. Scoring, slicing and perplexity are visitors of it. Never more than one layer is in memory.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "dynslice/model/checkpoint.h"
#include "dynslice/model/forward.h"
#include "dynslice/support/progress.h"
#include "dynslice/support/token_windows.h"
#include "dynslice/walk/residual_stream.h"

namespace dynslice {

struct ComputeOptions {
  at::Device device = at::kCPU;
  at::ScalarType dtype = at::kFloat;  // of the linear layers and attention; the residual stream is fp32
  int64_t chunk_tokens = 2048;        // tokens that go through a layer together, at least one window
  std::shared_ptr<ActivationStore> activations = nullptr;  // where streams live; null: in memory
};

// The device and dtype that `device` ("auto", "cpu", "cuda", "cuda:1") and `dtype` ("auto", "fp32", "bf16",
// "fp16") mean here: CUDA when LibTorch sees one, fp32 on the CPU and bf16 on CUDA.
// Throws kUsage for names that do not exist or a device that is not there.
[[nodiscard]] ComputeOptions resolve_compute(const std::string& device, const std::string& dtype);

// What a visitor has in its hands at one layer.
class LayerStep {
 public:
  LayerStep(int64_t index, DecoderLayer loaded_layer, const LayerContext& shared, ProgressTask& progress)
      : layer(std::move(loaded_layer)), context(shared), index_(index), progress_(progress) {}

  [[nodiscard]] int64_t index() const { return index_; }

  // Replaces every chunk of the stream by fn(chunk). Counts the tokens as progress, `passes` of them making a
  // whole layer; stops with kInterrupted when asked to.
  void transform(ResidualStream& stream, const std::function<at::Tensor(const at::Tensor&)>& fn,
                 double passes = 1) const;

  // Counts work that needed no transform as done.
  void advance(int64_t tokens) const { progress_.advance(tokens); }

  DecoderLayer layer;
  const LayerContext& context;

 private:
  int64_t index_;
  ProgressTask& progress_;
};

// Where a walk begins, and what is done between layers.
struct WalkSpan {
  int64_t first_layer = 0;                                   // the ones before were walked by an earlier run
  std::function<void(int64_t next_layer)> after_layer = {};  // called after every layer with the next one's index
};

class LayerWalk {
 public:
  // `checkpoint` must outlive the walk. `window_length` is the T of all streams.
  LayerWalk(const Checkpoint& checkpoint, const ComputeOptions& options, int64_t window_length, ProgressSink& progress);

  [[nodiscard]] const Checkpoint& checkpoint() const { return checkpoint_; }
  [[nodiscard]] const ModelConfig& config() const { return checkpoint_.config(); }
  [[nodiscard]] const ComputeOptions& options() const { return options_; }
  [[nodiscard]] const LayerContext& context() const { return context_; }
  [[nodiscard]] ProgressSink& progress() const { return progress_; }

  // Throws kBadInput for a token id that the embedding does not have (tokenizer and model do not match).
  void check_ids(const TokenWindows& windows) const;

  // The stream that enters layer 0: the rows of the embedding matrix, which is read in blocks. Checks the ids.
  // `positions` are those of the ids in their sequences, where the windows are none.
  [[nodiscard]] ResidualStream embed(const TokenWindows& windows, std::span<const int64_t> positions = {}) const;

  // A stream without chunks that keeps its chunks where `embed` would; for those that a journal restores.
  [[nodiscard]] ResidualStream empty_stream() const { return {{}, options_.activations, options_.device}; }

  // Visits every layer of the span in order. `tokens` (of all streams that the visitor transforms) is for the progress
  // bar. The linear weights come in `weights`, the dtype of the forward when not given.
  void run(const std::string& task, int64_t tokens, const std::function<void(LayerStep&)>& visit,
           std::optional<at::ScalarType> weights = std::nullopt, const WalkSpan& span = {}) const;

 private:
  const Checkpoint& checkpoint_;
  ComputeOptions options_;
  LayerContext context_;
  ProgressSink& progress_;
};

// Walks the stream through all layers of the checkpoint as they are.
void run_dense(const LayerWalk& walk, const std::string& task, ResidualStream& stream, const WalkSpan& span = {});

// What rows of the embedding pass through on their way to layer 0.
struct Entrance {
  double scale = 1;      // rounded to the dtype of the forward, as in training
  at::Tensor positions;  // [positions, columns] fp32, added; undefined where heads are rotated instead
  bool centres = false;  // takes the mean of its entries from every row
  at::Tensor rotation;   // [embedding_width, columns] fp32; undefined when there is none

  // rows [n, columns] fp32, used up, of tokens at positions [n] int64 → [n, embedding_width].
  [[nodiscard]] at::Tensor pass(const at::Tensor& rows, const at::Tensor& at_positions) const;
};
[[nodiscard]] Entrance load_entrance(const Checkpoint& checkpoint, const ComputeOptions& options);

}  // namespace dynslice
