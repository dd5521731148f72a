// Comparing models, as `dynslice compare` does it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "dynslice/jobs/comparison.h"
#include "dynslice/jobs/outcome.h"
#include "dynslice/jobs/prepare.h"
#include "dynslice/jobs/requests.h"
#include "dynslice/support/json.h"
#include "dynslice/support/progress.h"
#include "dynslice/walk/layer_walk.h"

namespace dynslice {

struct CompareResult {
  FigureTable table;        // of all figures, as text
  std::string explanation;  // what the table's differences and intervals are
  ComputeOptions compute;
  OrderedJson models;     // figures of every model, and what was measured before
  int64_t resamples = 0;  // of the bootstrap
  uint64_t seed = 0;
  bool has_tasks = false;
  OrderedJson run_description;
  OrderedJson text;  // null without perplexity
  double seconds = 0;
  PeakMemory peak;
};
// As --json prints it.
[[nodiscard]] OrderedJson to_json(const CompareResult& result);

// Measures what the cache does not have yet, and writes the files that the request names. Throws kUsage when models,
// text and tasks do not go together, kOutOfResources when speed cannot be measured in the memory there is, and what
// reading models and text throws. What was measured is kept when it ends early.
[[nodiscard]] Outcome<CompareResult> run(const CompareRequest& request, ProgressSink& progress);

}  // namespace dynslice
