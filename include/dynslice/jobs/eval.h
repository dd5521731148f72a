// Measuring a model, as `dynslice eval` does it: perplexity, divergence from another model, and tasks.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "dynslice/evaluate/divergence.h"
#include "dynslice/evaluate/perplexity.h"
#include "dynslice/evaluate/text_levels.h"
#include "dynslice/jobs/outcome.h"
#include "dynslice/jobs/prepare.h"
#include "dynslice/jobs/requests.h"
#include "dynslice/jobs/task_report.h"
#include "dynslice/support/json.h"
#include "dynslice/support/progress.h"
#include "dynslice/text/datasets/dataset.h"
#include "dynslice/walk/layer_walk.h"

namespace dynslice {

// What a text gave.
struct TextEvaluation {
  TextSource source;
  ScoredText scored;
  PerplexityProtocol protocol = PerplexityProtocol::kFull;
  Perplexity perplexity;
  std::optional<Divergence> divergence;  // of --against
  std::string reference;                 // path of the other model, then
  double tokens_per_second = 0;          // of both models together
  ComputeOptions compute;
  OrderedJson run_description, text_description;
  double seconds = 0;  // those of runs that were resumed included
  PeakMemory peak;
};

// What the tasks gave.
struct TaskEvaluation {
  TaskReport report;
  ComputeOptions compute;
  OrderedJson run_description;
  double seconds = 0;  // those of runs that were resumed included
  PeakMemory peak;
};

struct EvalResult {
  std::optional<TaskEvaluation> tasks;
  std::optional<TextEvaluation> text;
};
// As --json prints it.
[[nodiscard]] OrderedJson to_json(const EvalResult& result);

// Measures the text, the tasks that the request names, or both, the tasks first: `on_tasks` is told of them before the
// text is begun, which may take long or fail. Writes the file of samples that the request names. Throws kUsage when the
// two models have not the same tokens, or names and numbers make no sense; and what reading models and text throws.
[[nodiscard]] Outcome<EvalResult> run(const EvalRequest& request, ProgressSink& progress,
                                      const std::function<void(const TaskEvaluation&)>& on_tasks = {});

}  // namespace dynslice
