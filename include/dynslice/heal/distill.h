// Recovery layer by layer: every layer of the smaller model learns, by low-rank updates, to leave the stream that the
// original model has there. Needs the memory of one layer of each and two streams.
#pragma once

#include <cstdint>
#include <vector>

#include "dynslice/heal/lora_options.h"
#include "dynslice/support/token_windows.h"
#include "dynslice/train/trainable_layer.h"
#include "dynslice/train/training.h"
#include "dynslice/walk/journal.h"
#include "dynslice/walk/layer_walk.h"

namespace dynslice {

struct DistillOptions {
  LoraOptions lora;
  TrainingOptions training;  // of every layer
  int64_t held_out = 1;      // windows at the end that are not trained on
  bool recomputes = false;
};

// The relative squared error (see StreamObjective) of what leaves a layer, on held-out windows.
struct DistilledLayer {
  double before = 0;
  double after = 0;
};

struct DistillResult {
  std::vector<LayerUpdates> updates;
  std::vector<DistilledLayer> layers;
  int64_t tokens = 0;  // trained on, all layers together
};

// `boundaries`: for every layer of the smaller model, whose walk is `walk`, the number of layers of `original` that
// the stream which leaves it stands behind: ascending, the last one all of them. Where the streams' bases differ (a
// sliced model), a least-squares map P from the smaller model's stream to the original's, fitted before the layer is
// trained and then fixed, takes one to the other. Throws kUsage for boundaries that do not fit.
[[nodiscard]] DistillResult heal_by_distillation(const LayerWalk& walk, const Checkpoint& original,
                                                 const std::vector<int64_t>& boundaries, const TokenWindows& windows,
                                                 const DistillOptions& options, const JournalPhase& journal = {});

}  // namespace dynslice
