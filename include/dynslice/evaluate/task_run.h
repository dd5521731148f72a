// A model's answers to the questions of some tasks.
#pragma once

#include <cstdint>
#include <vector>

#include "dynslice/evaluate/answers.h"
#include "dynslice/evaluate/outcomes.h"
#include "dynslice/evaluate/tasks.h"

namespace dynslice {

// Tokenizes and scores the questions of all tasks together.
class TaskRun {
 public:
  // Throws as AnswerEncoder::encode does. `tasks` must outlive it.
  TaskRun(const std::vector<TaskQuestions>& tasks, const Tokenizer& tokenizer, const Checkpoint& checkpoint);

  [[nodiscard]] AnswerAmount amount() const { return amount_; }
  [[nodiscard]] int64_t questions() const;
  [[nodiscard]] std::vector<TaskOutcome> run(const Checkpoint& checkpoint, const ComputeOptions& compute,
                                             const AnswerOptions& options, ProgressSink& progress) const;

 private:
  const std::vector<TaskQuestions>& tasks_;
  std::vector<Answer> answers_;  // of question after question
  AnswerAmount amount_;
};

}  // namespace dynslice
