#include "dynslice/evaluate/outcomes.h"

#include <algorithm>
#include <cmath>

namespace dynslice {
namespace {

Measure mean_of(const std::vector<double>& values) {
  const auto count = static_cast<double>(values.size());
  Measure measure;
  for (const double value : values) measure.value += value / count;
  if (values.size() < 2) return measure;
  double squares = 0;
  for (const double value : values) squares += (value - measure.value) * (value - measure.value);
  measure.stderr_ = std::sqrt(squares / (count - 1)) / std::sqrt(count);
  return measure;
}

template <typename Value>
Measure mean_over(const std::vector<QuestionOutcome>& questions, Value value) {
  std::vector<double> values;
  for (const QuestionOutcome& question : questions) values.push_back(value(question));
  return mean_of(values);
}

const TaskOutcome* find(const std::vector<TaskOutcome>& outcomes, const std::string& name) {
  const auto found =
      std::find_if(outcomes.begin(), outcomes.end(), [&](const TaskOutcome& outcome) { return outcome.name == name; });
  return found == outcomes.end() ? nullptr : &*found;
}

template <typename Item>
std::vector<Item> list_of(const JsonReader& reader, const std::string& key, bool (*fits)(const Json&),
                          const std::string& expected) {
  std::vector<Item> items;
  if (!reader.has(key) || !reader.raw()[key].is_array()) reader.fail(key, expected);
  for (const Json& item : reader.raw()[key]) {
    if (!fits(item)) reader.fail(key, expected);
    items.push_back(item.get<Item>());
  }
  return items;
}

}  // namespace

TaskFigures figures_of(const TaskOutcome& outcome) {
  TaskFigures figures;
  figures.questions = static_cast<int64_t>(outcome.questions.size());
  figures.cut_questions = std::count_if(outcome.questions.begin(), outcome.questions.end(),
                                        [](const QuestionOutcome& question) { return question.cut > 0; });
  figures.acc = mean_over(outcome.questions, [](const QuestionOutcome& q) { return q.is_right ? 1.0 : 0.0; });
  if (outcome.has_acc_norm) {
    figures.acc_norm =
        mean_over(outcome.questions, [](const QuestionOutcome& q) { return q.is_right_norm ? 1.0 : 0.0; });
  }
  if (outcome.is_cloze) {
    Measure measure = mean_over(outcome.questions, [](const QuestionOutcome& q) { return q.log_likelihoods.front(); });
    measure.value = std::exp(-measure.value);
    if (measure.stderr_) *measure.stderr_ *= measure.value;
    figures.perplexity = measure;
  }
  return figures;
}

TaskFigures figures_of(const TaskGroup& group, const std::vector<TaskOutcome>& outcomes) {
  TaskFigures figures;
  double squares = 0;
  int64_t members = 0;
  bool has_errors = true;
  for (const std::string& name : group.members) {
    const TaskOutcome* outcome = find(outcomes, name);
    if (outcome == nullptr) continue;
    const TaskFigures member = figures_of(*outcome);
    const auto size = static_cast<double>(member.questions);
    figures.questions += member.questions;
    figures.cut_questions += member.cut_questions;
    figures.acc.value += member.acc.value * size;
    has_errors = has_errors && member.acc.stderr_.has_value();
    squares += (size - 1) * size * std::pow(member.acc.stderr_.value_or(0), 2);
    ++members;
  }
  if (figures.questions == 0) return figures;
  const auto all = static_cast<double>(figures.questions);
  figures.acc.value /= all;
  if (has_errors) figures.acc.stderr_ = std::sqrt(squares / (all - static_cast<double>(members)) / all);
  return figures;
}

OrderedJson to_json(const QuestionOutcome& outcome) {
  return {{"id", outcome.id},
          {"gold", outcome.gold},
          {"prediction", outcome.prediction},
          {"prediction_norm", outcome.prediction_norm},
          {"right", outcome.is_right},
          {"right_norm", outcome.is_right_norm},
          {"log_likelihoods", outcome.log_likelihoods},
          {"tokens", outcome.tokens},
          {"cut_tokens", outcome.cut}};
}

OrderedJson to_json(const TaskOutcome& outcome) {
  OrderedJson json = {{"task", outcome.name},
                      {"version", outcome.version},
                      {"num_fewshot", outcome.examples},
                      {"sha256", outcome.sha256},
                      {"cloze", outcome.is_cloze},
                      {"has_acc_norm", outcome.has_acc_norm},
                      {"questions", OrderedJson::array()}};
  for (const QuestionOutcome& question : outcome.questions) json["questions"].push_back(to_json(question));
  return json;
}

QuestionOutcome question_outcome_from_json(const Json& json, const std::string& where) {
  const JsonReader reader(json, where);
  QuestionOutcome outcome;
  outcome.id = reader.string("id");
  outcome.log_likelihoods = list_of<double>(
      reader, "log_likelihoods", [](const Json& item) { return item.is_number(); }, "a list of numbers");
  outcome.tokens = list_of<int64_t>(
      reader, "tokens", [](const Json& item) { return item.is_number_integer() && item.get<int64_t>() > 0; },
      "a list of positive integers");
  if (outcome.log_likelihoods.empty() || outcome.tokens.size() != outcome.log_likelihoods.size()) {
    reader.fail("tokens", "as many numbers as there are log-likelihoods");
  }
  const auto last = static_cast<int64_t>(outcome.log_likelihoods.size()) - 1;
  outcome.gold = reader.integer("gold", 0, last);
  outcome.prediction = reader.integer("prediction", 0, last);
  outcome.prediction_norm = reader.integer("prediction_norm", 0, last);
  outcome.is_right = reader.boolean("right");
  outcome.is_right_norm = reader.boolean("right_norm");
  outcome.cut = reader.integer("cut_tokens", 0, INT64_MAX);
  return outcome;
}

TaskOutcome task_outcome_from_json(const Json& json, const std::string& where) {
  const JsonReader reader(json, where);
  TaskOutcome outcome;
  outcome.name = reader.string("task");
  outcome.version = reader.number("version");
  outcome.examples = reader.integer("num_fewshot", 0, INT64_MAX);
  outcome.sha256 = reader.string("sha256");
  outcome.is_cloze = reader.boolean("cloze");
  outcome.has_acc_norm = reader.boolean("has_acc_norm");
  if (!reader.has("questions") || !json["questions"].is_array()) reader.fail("questions", "a list of outcomes");
  for (const Json& question : json["questions"]) {
    outcome.questions.push_back(
        question_outcome_from_json(question, where + ": question " + std::to_string(outcome.questions.size())));
  }
  return outcome;
}

}  // namespace dynslice
