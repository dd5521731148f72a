// What training and gradients need.
#pragma once

#include <cstdint>

#include "dynslice/model/checkpoint.h"
#include "dynslice/resources/estimate.h"
#include "dynslice/walk/layer_walk.h"

namespace dynslice {

// What the loss says of the layers: the text goes forth and back through all of them. Nothing without text.
[[nodiscard]] ResourceEstimate estimate_sensitivity(const Checkpoint& checkpoint, const ComputeOptions& compute,
                                                    TextAmount gradients);

// What the loss says of the layers, for as long as it is kept: G inside and behind all of them.
[[nodiscard]] MemoryPart gradient_directions(const ModelConfig& config, TextAmount gradients);

// Training some parameters of consecutive layers that are in memory, on streams or on the next token.
struct TrainingUse {
  int64_t first_layer = 0, end_layer = 0;  // of the checkpoint, in memory; the end excluded
  bool has_head = true;                    // embedding and output matrix are there too
  int64_t parameters = 0;                  // that are trained
  int64_t kept_parameters = 0;             // trained before, or to be, beside them
  int64_t matrices = 0;                    // hidden × hidden in fp64
  int64_t micro_tokens = 0;                // that go through the layers together
  int64_t trained_tokens = 0;              // all passes together
  int64_t validated_tokens = 0;
  bool recomputes = true;   // inner activations on the way back
  int64_t streams = 0;      // of the text, kept
  int64_t stream_item = 4;  // bytes of a value of theirs
  double walks = 0;         // through all layers, before the training
  uint64_t output_bytes = 0;
};
[[nodiscard]] ResourceEstimate estimate_training(const Checkpoint& checkpoint, const ComputeOptions& compute,
                                                 TextAmount text, const TrainingUse& use);

// What the backward of one layer needs of the forward of `tokens` tokens.
[[nodiscard]] int64_t activation_bytes(const LayerShape& shape, at::ScalarType dtype, int64_t tokens);

}  // namespace dynslice
