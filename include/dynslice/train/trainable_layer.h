// The forward of a decoder layer with gradients, and low-rank updates of its linears (LoRA, arXiv 2106.09685).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "dynslice/model/forward.h"

namespace dynslice {

// y[first_row ... first_row + rows) += scale b a dropout(x), for the rows of one linear ("q_proj") in its matrix.
struct LowRankUpdate {
  std::string module;  // "self_attn.q_proj"
  Linear DecoderLayer::* matrix = nullptr;
  int64_t first_row = 0;
  int64_t rows = 0;
  at::Tensor a;  // [rank, in] fp32
  at::Tensor b;  // [rows, rank] fp32
};

// Those of one layer.
struct LayerUpdates {
  std::vector<LowRankUpdate> parts;
  double scale = 1;    // alpha / rank
  double dropout = 0;  // share of the inputs that an update does not see while it is trained
};

// x [B, T, input_width] fp32 → the stream that leaves the layer [B, T, output_width] fp32: what forward_layer
// gives. Linears and attention compute in `dtype`. Differentiable in x, in the updates and in all weights
// that require a gradient. With `dropout_seed` the updates' dropout is on: sequence b has the seed dropout_seed + b,
// which alone decides what it drops.
at::Tensor forward_trainable(const DecoderLayer& layer, const LayerContext& context, const at::Tensor& x,
                             at::ScalarType dtype, const LayerUpdates* updates = nullptr,
                             std::optional<uint64_t> dropout_seed = std::nullopt);

// The same without updates: the stream inside the layer too, of which the other is computed.
struct LayerStreams {
  at::Tensor inside;   // [B, T, middle_width] fp32
  at::Tensor leaving;  // [B, T, output_width] fp32
};
LayerStreams forward_trainable_halves(const DecoderLayer& layer, const LayerContext& context, const at::Tensor& x,
                                      at::ScalarType dtype);

// The layer with the updates added to its weights, which are fp32 for that.
DecoderLayer with_updates(DecoderLayer layer, const LayerUpdates& updates);

}  // namespace dynslice
