// What the tasks of an evaluation gave.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "dynslice/evaluate/stability.h"
#include "dynslice/evaluate/tasks.h"
#include "dynslice/support/json.h"

namespace dynslice {

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

  [[nodiscard]] int64_t count_questions() const;
  [[nodiscard]] double questions_per_second() const;
};

// {"tasks": {NAME: ...}, "questions_per_second": ..., ...}: keys in docs/cli.md.
[[nodiscard]] OrderedJson to_json(const TaskReport& report);
// One line a question.
[[nodiscard]] std::string sample_lines(const TaskReport& report);

}  // namespace dynslice
