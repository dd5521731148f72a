// A model with fewer layers: which layers of the source it keeps, which it merges, and what repairs the cut.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "dynslice/checkpoint/checkpoint_writer.h"
#include "dynslice/depth/choices.h"
#include "dynslice/model/config.h"
#include "dynslice/model/decoder_layer.h"
#include "dynslice/support/progress.h"

namespace dynslice {

// A linear map that makes up for layers which are gone, where the stream leaves the layer before them.
struct Repair {
  int64_t layer = 0;       // of the source
  at::Tensor map;          // [d, d] fp32
  bool on_stream = false;  // maps the whole stream, which takes a matrix of its own; else what the MLP adds (folded in)
};

// A layer that was trained to stand for several of the source.
struct Replacement {
  int64_t layer = 0;     // of the source: the first of those that it stands for
  DecoderLayer weights;  // fp32
};

struct DepthPlan {
  // Per layer of the result the layers of the source that it is made of, ascending and without overlap; one layer
  // stays as it is.
  std::vector<std::vector<int64_t>> layers;
  MergeRule rule = MergeRule::kSum;
  std::optional<Repair> repair{};            // of a layer that stays as it is
  std::optional<Replacement> replacement{};  // in the place of a layer that stays as it is
};

// Keeps all of `layers` layers but `dropped`. Throws kUsage when one of these does not exist or none is left.
[[nodiscard]] DepthPlan plan_without(int64_t layers, const std::vector<int64_t>& dropped);

// Throws kUsage for a sliced model, whose layers work in bases of their own: a layer cannot take another's place.
void check_depth(const Checkpoint& checkpoint);

// The same, and for a model with a layer that is an MLP alone, which is no such layer as the others.
void check_whole_layers(const Checkpoint& checkpoint);

// The configuration of the model that `plan` makes of `source`.
[[nodiscard]] ModelConfig depth_config(const ModelConfig& source, const DepthPlan& plan);

// The layers merged into one, in fp32. `next` gives layer k of `layers`, in order.
[[nodiscard]] DecoderLayer merge_layers(MergeRule rule, const std::vector<int64_t>& layers,
                                        const std::function<DecoderLayer(int64_t layer)>& next);

// The layer with the repair folded in; linear weights keep their dtype.
[[nodiscard]] DecoderLayer repaired(DecoderLayer layer, const Repair& repair);

// Writes all tensors of the model that `plan` makes of `source`, one or two in memory at a time.
// `writer` has announced checkpoint_tensors(depth_config(source.config(), plan), dtype).
void write_depth(const Checkpoint& source, const DepthPlan& plan, at::ScalarType dtype, CheckpointWriter& writer,
                 ProgressSink& progress);

}  // namespace dynslice
