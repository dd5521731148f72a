// What a model answered to every question of a task, and the figures made of it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "dynslice/evaluate/tasks.h"
#include "dynslice/support/json.h"

namespace dynslice {

struct QuestionOutcome {
  std::string id;
  int64_t gold = 0;
  int64_t prediction = 0;       // the choice with the largest log-likelihood, the first of equal ones
  int64_t prediction_norm = 0;  // the same, of the log-likelihood over the choice's number of characters
  bool is_right = false;        // of a cloze task: the answer is the likeliest
  bool is_right_norm = false;
  std::vector<double> log_likelihoods;  // of every choice, in nats
  std::vector<int64_t> tokens;          // of every choice
  int64_t cut = 0;                      // most tokens of a context left out, for the model's maximum
};

struct TaskOutcome {
  std::string name;
  double version = 0;
  int64_t examples = 0;  // few-shot
  std::string sha256;    // of the questions' file
  bool is_cloze = false;
  bool has_acc_norm = false;
  std::vector<QuestionOutcome> questions;
};

// For files. `from_json` throws kBadInput, with `where` in front, for what is not the JSON of an outcome.
[[nodiscard]] OrderedJson to_json(const QuestionOutcome& outcome);
[[nodiscard]] OrderedJson to_json(const TaskOutcome& outcome);
[[nodiscard]] QuestionOutcome question_outcome_from_json(const Json& json, const std::string& where);
[[nodiscard]] TaskOutcome task_outcome_from_json(const Json& json, const std::string& where);

// A figure and its standard error, which a single question has none of.
struct Measure {
  double value = 0;
  std::optional<double> stderr_;
};

// Standard errors are the harness': of accuracies that of the mean, with Bessel's correction. That of a perplexity,
// which the harness bootstraps, is the perplexity times the standard error of the mean log-likelihood.
struct TaskFigures {
  int64_t questions = 0;
  int64_t cut_questions = 0;  // whose context was longer than the model's maximum
  Measure acc;
  std::optional<Measure> acc_norm;
  std::optional<Measure> perplexity;  // of cloze tasks
};
[[nodiscard]] TaskFigures figures_of(const TaskOutcome& outcome);

// Accuracy over all members' questions, each counting the same; the standard error is the pooled one of the harness.
[[nodiscard]] TaskFigures figures_of(const TaskGroup& group, const std::vector<TaskOutcome>& outcomes);

}  // namespace dynslice
