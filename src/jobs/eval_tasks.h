// The tasks of `dynslice eval`.
#pragma once

#include <memory>
#include <variant>

#include "dynslice/jobs/eval.h"
#include "dynslice/walk/journal.h"

namespace dynslice {

// The journal keeps the answers until the command is done.
struct AnsweredTasks {
  std::unique_ptr<Journal> journal;
  TaskEvaluation tasks;
};

// Runs the tasks. With `asks_perplexity` a dry run's estimate is that of the text as well.
std::variant<AnsweredTasks, DryRun> answer_tasks(const EvalRequest& options, ProgressSink& progress,
                                                 bool asks_perplexity);

}  // namespace dynslice
