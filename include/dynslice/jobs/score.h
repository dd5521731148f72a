// Scoring the layers of a model, as `dynslice score` does it.
#pragma once

#include "dynslice/jobs/outcome.h"
#include "dynslice/jobs/prepare.h"
#include "dynslice/jobs/requests.h"
#include "dynslice/plan/layer_scores.h"
#include "dynslice/score/score.h"
#include "dynslice/support/json.h"
#include "dynslice/support/progress.h"

namespace dynslice {

struct ScoreResult {
  LayerScores scores;  // with their provenance
  Metric metric;
  double seconds = 0;  // those of runs that were resumed included
  PeakMemory peak;
};
// As --json prints it.
[[nodiscard]] OrderedJson to_json(const ScoreResult& result);

// Writes the files that the request names. Throws kUsage when metric, preset and files do not go together, and what
// reading model and text throws.
[[nodiscard]] Outcome<ScoreResult> run(const ScoreRequest& request, ProgressSink& progress);

}  // namespace dynslice
