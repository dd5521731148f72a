// Sliding layer merging (SLM, arXiv 2502.19159, algorithm 1): from the top down, as many consecutive layers as can be
// become one, as long as the final hidden states stay like the original model's.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "dynslice/depth/depth_plan.h"
#include "dynslice/support/token_windows.h"
#include "dynslice/walk/journal.h"
#include "dynslice/walk/layer_walk.h"

namespace dynslice {

struct MergeOptions {
  MergeRule rule = MergeRule::kSum;
  double threshold = 0.72;               // a range grows while the cosine is above this
  std::optional<int64_t> target_layers;  // instead: the highest threshold that gets down to this many layers
};

struct MergeTrial {
  int64_t low = 0, high = 0;  // the range that was merged, beside the ones that were fixed before
  double cosine = 0;          // of final hidden states: of each window as one long vector, mean over windows
};

struct MergeResult {
  DepthPlan plan;
  double threshold = 0;            // that was given, or found
  double cosine = 1;               // of the model that the plan makes
  std::vector<MergeTrial> trials;  // of the search at that threshold, in order
  int64_t layers_run = 0;          // in all trials made, at all thresholds
  int64_t layers_if_whole = 0;     // what they would have run without streams kept at every layer's entry
};

// Searches on `windows` (the paper: 10 of 128 tokens). The last layer stays as it is. Keeps the dense model's stream
// at every layer's entry, so that a trial runs the layers from `low` upward only, and the cosine of every trial, so
// that thresholds share them. `phase` gives the journal of a trial.
// Throws kUsage for a sliced model, or a target that merging cannot reach.
[[nodiscard]] MergeResult merge_by_sliding(const LayerWalk& walk, const TokenWindows& windows,
                                           const MergeOptions& options,
                                           const std::function<JournalPhase(const std::string& name)>& phase);

}  // namespace dynslice
