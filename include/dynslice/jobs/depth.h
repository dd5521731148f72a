// Models with fewer layers, as `dynslice depth` makes them: drop, merge and streamline.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "dynslice/depth/depth_plan.h"
#include "dynslice/depth/drop.h"
#include "dynslice/depth/merge.h"
#include "dynslice/jobs/outcome.h"
#include "dynslice/jobs/prepare.h"
#include "dynslice/jobs/requests.h"
#include "dynslice/jobs/sizes.h"
#include "dynslice/plan/layer_scores.h"
#include "dynslice/support/json.h"
#include "dynslice/support/progress.h"
#include "dynslice/train/training.h"

namespace dynslice {

// How `depth drop` chose its layers.
struct DropSearch {
  std::vector<int64_t> dropped;        // ascending
  std::optional<LayerScores> scores;   // by block influence
  std::vector<DropTrial> trials = {};  // by perplexity, in the order in which the layers went
};

// How `depth merge` chose its ranges.
struct MergeSearch {
  MergeRule rule = MergeRule::kSum;
  MergeResult result;
};

// A window of layers that was left out, and the loss (nats a token, held-out windows) of what was left.
struct WindowTrial {
  int64_t start = 0;
  double loss = 0;
};

// How `depth streamline` chose its window, and what stands for it.
struct StreamlineSearch {
  int64_t window = 0;                           // layers that were tried together
  int64_t first = 0, count = 0;                 // of the layers that went; count 0: none was to go
  std::optional<LayerScores> scores = {};       // of all windows, by cosine
  std::vector<WindowTrial> trials = {};         // of all windows, by loss
  bool is_repaired = false;                     // by a linear map
  std::optional<TrainingResult> training = {};  // of the replacement
};

struct DepthResult {
  DepthPlan plan;
  std::variant<DropSearch, MergeSearch, StreamlineSearch> search;
  int64_t layers_before = 0;
  SizeChange sizes;
  OrderedJson record;  // dynslice.json as it was written
  std::filesystem::path output;
  double seconds = 0;  // those of runs that were resumed included
  PeakMemory peak;
};
// As --json prints it.
[[nodiscard]] OrderedJson to_json(const DepthResult& result);

// Writes the checkpoint of the model without the layers that are named, or that matter least. Throws kUsage for a
// sliced model, layers that do not exist, and an output that may not be written; and what reading model and text
// throws.
[[nodiscard]] Outcome<DepthResult> run(const DropRequest& request, ProgressSink& progress);

// Writes the checkpoint of the model whose consecutive layers became one where its final hidden states stay alike.
// Throws as the job above does, and kUsage for a number of layers that merging cannot reach.
[[nodiscard]] Outcome<DepthResult> run(const MergeRequest& request, ProgressSink& progress);

// Writes the checkpoint of the model without a window of consecutive layers, with a linear map or a trained layer or
// MLP in its place. Throws as the jobs above do, and kUsage for options that would do nothing; kBadInput when a
// training's loss is no longer a number.
[[nodiscard]] Outcome<DepthResult> run(const StreamlineRequest& request, ProgressSink& progress);

}  // namespace dynslice
