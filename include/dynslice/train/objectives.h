// What can be learnt: the next token, through consecutive layers and the head after them, or the stream that another
// model has at the same place.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "dynslice/model/forward.h"
#include "dynslice/support/token_windows.h"
#include "dynslice/train/trainable_layer.h"
#include "dynslice/train/training.h"
#include "dynslice/walk/head.h"
#include "dynslice/walk/residual_stream.h"

namespace dynslice {

// A sequence, and from which of its tokens on the loss counts (the answer's, where a question comes first).
struct TrainingExample {
  std::vector<int32_t> ids;
  int64_t first_target = 1;  // from 1: nothing predicts the first token
  [[nodiscard]] int64_t targets() const { return static_cast<int64_t>(ids.size()) - first_target; }
};
[[nodiscard]] std::vector<TrainingExample> examples_of(const TokenWindows& windows);

// Consecutive layers of a model in memory, with what may be learnt of them.
struct TrainableLayers {
  const ModelConfig* config = nullptr;
  at::Device device = at::kCPU;
  at::ScalarType dtype = at::kFloat;  // of linears and attention
  std::vector<DecoderLayer> layers;
  std::vector<LayerUpdates> updates;  // one a layer; empty ones where there are none
  int64_t first_trainable = 0;        // the layers before are only run forward
  // Whether the inner activations of a layer are computed a second time on the way back, instead of being kept: then
  // memory holds one layer's and the streams between layers.
  bool recomputes = true;

  [[nodiscard]] const LayerContext& context(int64_t length) const;

 private:
  mutable LayerContext context_;  // of the length that was asked for last
  mutable int64_t context_length_ = -1;
};

// All tensors of a layer's weights as parameters: fp32 copies that require gradients, in the layer itself.
[[nodiscard]] std::vector<at::Tensor> make_trainable(DecoderLayer& layer);
// The updates' factors.
[[nodiscard]] std::vector<at::Tensor> parameters_of(const std::vector<LayerUpdates>& updates);

// The whole output matrix [vocab_size, columns], read in blocks where it is not in memory yet.
[[nodiscard]] at::Tensor output_matrix_of(const Head& head);

// Negative log-likelihood of x [n, width] fp32, what leaves the last layer, for `targets` [n] (int64; below 0: not
// counted). With `gradient`, that of `scale` times the sum with respect to x. Logits of some rows only are in memory
// at a time.
LossSum head_loss(const Head& head, const at::Tensor& output_matrix, const at::Tensor& x, const at::Tensor& targets,
                  double scale, at::Tensor* gradient);

// Next-token loss.
class LanguageModelObjective final : public Objective {
 public:
  // The streams [B, length, width] that enter the first of the layers for some examples, of those held out or not.
  using Entry = std::function<at::Tensor(std::span<const int64_t> examples, bool held_out, int64_t length)>;

  LanguageModelObjective(TrainableLayers& layers, const Head& head, Entry entry, std::vector<TrainingExample> training,
                         std::vector<TrainingExample> held_out, int64_t micro_batch);

  [[nodiscard]] int64_t examples() const override { return static_cast<int64_t>(training_.size()); }
  [[nodiscard]] double weight(int64_t example) const override;
  [[nodiscard]] int64_t tokens(int64_t example) const override;
  LossSum backward(std::span<const int64_t> examples, double scale, uint64_t seed) override;
  std::optional<LossSum> validate() override;

 private:
  LossSum pass(const std::vector<TrainingExample>& set, std::span<const int64_t> examples, bool held_out,
               std::optional<double> scale, uint64_t seed);

  TrainableLayers& layers_;
  const Head& head_;
  at::Tensor output_matrix_;
  Entry entry_;
  std::vector<TrainingExample> training_, held_out_;
  const int64_t micro_batch_;
};

// Σ_t ‖P y_t - target_t‖² / ‖target_t‖² of what leaves a layer, y, for what enters it. Tokens weigh by the inverse
// square of the target's norm, as in fit_repairs: the few tokens of massive activations would rule the loss otherwise.
class StreamObjective final : public Objective {
 public:
  // Windows from `held_out_from` on are held out. `map` P [target's width, output width] fp32 is undefined for the
  // identity. Streams may be fp32 or bf16.
  StreamObjective(TrainableLayers& layer, const ResidualStream& entered, const ResidualStream& target,
                  int64_t held_out_from, at::Tensor map, int64_t micro_batch);

  [[nodiscard]] int64_t examples() const override { return held_out_from_; }
  [[nodiscard]] double weight(int64_t) const override { return static_cast<double>(length_); }
  [[nodiscard]] int64_t tokens(int64_t) const override { return length_; }
  LossSum backward(std::span<const int64_t> examples, double scale, uint64_t seed) override;
  std::optional<LossSum> validate() override;

 private:
  LossSum pass(std::span<const int64_t> windows, std::optional<double> scale, uint64_t seed);

  TrainableLayers& layer_;
  const ResidualStream& entered_;
  const ResidualStream& target_;
  int64_t windows_ = 0, length_ = 0;
  const int64_t held_out_from_;
  at::Tensor map_;
  const int64_t micro_batch_;
};

// Window `index` of a stream, [1, T, width], on the stream's device in fp32.
[[nodiscard]] at::Tensor window_of(const ResidualStream& stream, int64_t index);

}  // namespace dynslice
