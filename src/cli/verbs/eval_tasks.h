// The tasks of `dynslice eval`.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "cli/options/options.h"
#include "cli/show/terminal.h"
#include "dynslice/evaluate/stability.h"
#include "dynslice/evaluate/tasks.h"
#include "dynslice/support/json.h"
#include "dynslice/walk/layer_walk.h"

namespace dynslice::cli {

// Runs the tasks and prints what they gave. With --ppl as well, `then` goes on with the perplexity while the tasks'
// results stay in their journal; it gets the JSON to be printed, or null without --json.
void run_tasks(const EvalRequest& options, TerminalProgress& progress, const std::function<void(OrderedJson)>& then);

// One model's part of the results.
struct TaskAnswers {
  std::string model;  // its path
  std::vector<TaskOutcome> outcomes;
  double seconds = 0;  // of tokenizing and scoring, those of runs that were resumed included
};

struct TaskReport {
  TaskSelection selection;
  std::vector<TaskQuestions> questions;
  TaskAnswers answers;
  std::optional<TaskAnswers> original;  // of --against
  std::vector<Stability> stability;     // of every task, then
};

// {"tasks": {NAME: ...}, "questions_per_second": ..., ...}: keys in docs/cli.md.
OrderedJson to_json(const TaskReport& report);
// One line a question.
std::string sample_lines(const TaskReport& report);
void print(const TaskReport& report, const ComputeOptions& compute, double seconds);

}  // namespace dynslice::cli
