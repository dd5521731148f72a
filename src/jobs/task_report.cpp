#include "dynslice/jobs/task_report.h"

namespace dynslice {
namespace {

void add_measure(OrderedJson& json, const std::string& name, const Measure& measure) {
  json[name] = measure.value;
  json[name + "_stderr"] = measure.stderr_ ? OrderedJson(*measure.stderr_) : OrderedJson();
}

OrderedJson figures_json(const TaskFigures& figures) {
  OrderedJson json;
  json["acc"] = figures.acc.value;
  json["stderr"] = figures.acc.stderr_ ? OrderedJson(*figures.acc.stderr_) : OrderedJson();
  if (figures.acc_norm) add_measure(json, "acc_norm", *figures.acc_norm);
  if (figures.perplexity) add_measure(json, "perplexity", *figures.perplexity);
  json["n"] = figures.questions;
  json["cut_questions"] = figures.cut_questions;
  return json;
}

// The ids of some questions.
OrderedJson ids_of(const TaskOutcome& outcome, const std::vector<int64_t>& numbers) {
  OrderedJson ids = OrderedJson::array();
  for (const int64_t number : numbers) ids.push_back(outcome.questions[static_cast<size_t>(number)].id);
  return ids;
}

void add_stability(OrderedJson& json, const Stability& stability, const TaskOutcome& outcome) {
  json["stability"] = stability.value;
  json["stability_by_loss"] = stability.by_loss;
  json["questions_behind_stability"] = stability.questions_behind_value;
  json["questions_behind_stability_by_loss"] = stability.questions_behind_loss;
  json["agreement"] = stability.agreement;
  json["flipped"] = {{"lost", ids_of(outcome, stability.lost)},
                     {"gained", ids_of(outcome, stability.gained)},
                     {"changed", ids_of(outcome, stability.changed)}};
}

OrderedJson describe_data(const TaskQuestions& task) {
  OrderedJson json = {{"file", task.path.string()}, {"sha256", task.sha256}};
  if (task.examples > 0) json["examples"] = {{"file", task.examples_path.string()}, {"sha256", task.examples_sha256}};
  return json;
}

}  // namespace

int64_t TaskReport::count_questions() const {
  int64_t count = 0;
  for (const TaskQuestions& task : questions) count += static_cast<int64_t>(task.questions.size());
  return count;
}

double TaskReport::questions_per_second() const {
  return answers.seconds > 0 ? static_cast<double>(count_questions()) / answers.seconds : 0;
}

OrderedJson to_json(const TaskReport& report) {
  OrderedJson json;
  for (const TaskGroup& group : report.selection.groups) {
    OrderedJson& one = json["tasks"][group.name] = figures_json(figures_of(group, report.answers.outcomes));
    one["version"] = group.version;
    if (report.original) one["against"] = figures_json(figures_of(group, report.original->outcomes));
    one["members"] = group.members;
  }
  for (size_t i = 0; i < report.questions.size(); ++i) {
    const TaskOutcome& outcome = report.answers.outcomes[i];
    OrderedJson& one = json["tasks"][outcome.name] = figures_json(figures_of(outcome));
    one["version"] = outcome.version;
    one["num_fewshot"] = outcome.examples;
    one["data"] = describe_data(report.questions[i]);
    if (!report.original) continue;
    one["against"] = figures_json(figures_of(report.original->outcomes[i]));
    add_stability(one, report.stability[i], outcome);
  }
  json["tasks_of"] = kHarnessVersion;
  json["questions"] = report.count_questions();
  json["questions_per_second"] = report.questions_per_second();
  json["task_seconds"] = report.answers.seconds;
  return json;
}

std::string sample_lines(const TaskReport& report) {
  std::string lines;
  for (size_t i = 0; i < report.questions.size(); ++i) {
    const TaskOutcome& outcome = report.answers.outcomes[i];
    for (size_t number = 0; number < outcome.questions.size(); ++number) {
      const Question& question = report.questions[i].questions[number];
      OrderedJson line = {{"task", outcome.name},
                          {"question", number},
                          {"contexts", question.contexts},
                          {"continuations", question.continuations}};
      line.update(to_json(outcome.questions[number]));
      if (report.original) line["against"] = to_json(report.original->outcomes[i].questions[number]);
      lines += line.dump(-1, ' ', false, OrderedJson::error_handler_t::replace) + "\n";
    }
  }
  return lines;
}

}  // namespace dynslice
