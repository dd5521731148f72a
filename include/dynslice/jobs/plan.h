// Planning how much of every layer goes, as `dynslice plan` does it.
#pragma once

#include <optional>

#include "dynslice/jobs/outcome.h"
#include "dynslice/jobs/requests.h"
#include "dynslice/jobs/sizes.h"
#include "dynslice/plan/layer_scores.h"
#include "dynslice/plan/slice_plan.h"
#include "dynslice/support/json.h"
#include "dynslice/support/progress.h"

namespace dynslice {

struct PlanResult {
  SlicePlan plan;                     // with its provenance
  std::optional<LayerScores> scores;  // that it was made from
  SizeChange sizes;                   // of a model that is sliced by it
};
// As --json prints it.
[[nodiscard]] OrderedJson to_json(const PlanResult& result);

// Works the plan out, and writes the file that the request names. Throws kUsage for options that do not go together,
// kOutOfResources when memory does not suffice, and what reading model, text and scores throws.
[[nodiscard]] Outcome<PlanResult> run(const PlanRequest& request, ProgressSink& progress);

}  // namespace dynslice
