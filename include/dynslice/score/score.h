// Layer scores: how much each layer changes the residual stream (ShortGPT, DynamicSlicing, LLM-Streamline), or how its
// weights are spread (LayerwiseQuant).
#pragma once

#include <cstdint>
#include <string>

#include "dynslice/plan/layer_scores.h"
#include "dynslice/score/choices.h"
#include "dynslice/walk/journal.h"
#include "dynslice/walk/layer_walk.h"

namespace dynslice {

struct Metric {
  MetricKind kind = MetricKind::kLayerRedundancy;
  int64_t window = 1;  // layers that a window spans; 1 for all metrics but window:n
  std::string name() const;
  bool needs_text() const { return row_of(kind).needs_text; }
};

// Throws kUsage, listing the known ones, for any other name.
Metric parse_metric(const std::string& name);

// Tokens of a minibatch of cka at most. They are every m-th of one window, so that minibatches do not depend on how
// windows are put together in chunks. Every stream leaves that many fp32 values a token behind until the walk ends.
inline constexpr int64_t kCkaTokens = 128;

struct ScoreOptions {
  Metric metric;
  // Reads the last layer's output after the final norm, as the authors' script for lr does; not for cka.
  bool after_final_norm = false;
  JournalPhase journal = {};  // keeps the means and the streams between layers
};

// Scores all layers in one walk; by zd, as score_weights does, for which windows may be empty. A token whose norm is 0
// on either side is left out and counted. Throws kBadInput naming layer and token for NaN or Inf in the stream, kUsage
// for a window longer than the model, a sliced model, or texts of less than 4 tokens a window for cka.
[[nodiscard]] LayerScores score_layers(const LayerWalk& walk, const TokenWindows& windows, const ScoreOptions& options);

// The metric zd: of every layer the share of the values w of its linear weights (q, k, v, o, gate, up, down) with
// (w - μ) / σ > 1, μ and σ being those of the layer. Few outstanding weights make a layer important. Reads every weight
// once, a layer at a time; of any model, sliced ones included. The result does not depend on the number of threads.
[[nodiscard]] LayerScores score_weights(const Checkpoint& checkpoint, ProgressSink& progress,
                                        const JournalPhase& journal = {});

}  // namespace dynslice
