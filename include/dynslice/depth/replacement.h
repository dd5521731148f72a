// What is trained to stand for layers that are gone (LLM-Streamline, arXiv 2403.19135, section 3): a decoder layer, or
// an MLP alone.
#pragma once

#include <cstdint>
#include <string>

#include "dynslice/depth/choices.h"
#include "dynslice/depth/depth_plan.h"
#include "dynslice/support/token_windows.h"
#include "dynslice/train/training.h"
#include "dynslice/walk/journal.h"
#include "dynslice/walk/layer_walk.h"

namespace dynslice {

// What `layer`, the first of those that go, becomes before it is trained as `kind`, which is a trained one; fp32.
DecoderLayer initial_replacement(ReplacementKind kind, DecoderLayer layer);

struct ReplacementOptions {
  ReplacementLoss loss = ReplacementLoss::kStream;
  int64_t held_out = 1;                      // windows at the end of the text that are not trained on
  at::ScalarType stream_dtype = at::kFloat;  // that streams are kept in: fp32 or bf16
  bool recomputes = true;                    // see TrainableLayers
  TrainingOptions training;
};

struct TrainedReplacement {
  Replacement replacement;
  TrainingResult result;
};

// Trains `initial`, which stands in the place of layers start ... start + count - 1. Walks the dense model for the
// streams before and behind them first; a run that goes on from the journal walks again.
// Throws kUsage for a sliced model, kBadInput when the loss is no longer a number.
[[nodiscard]] TrainedReplacement train_replacement(const LayerWalk& walk, const TokenWindows& windows, int64_t start,
                                                   int64_t count, DecoderLayer initial,
                                                   const ReplacementOptions& options, const JournalPhase& journal = {});

// The plan of the model in which `replacement` stands for layers start ... start + count - 1.
[[nodiscard]] DepthPlan plan_with_replacement(int64_t layers, int64_t start, int64_t count, Replacement replacement);

}  // namespace dynslice
