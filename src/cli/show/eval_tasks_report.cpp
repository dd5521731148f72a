// What the tasks gave: as a table, as JSON, and question by question.
#include <algorithm>
#include <iostream>

#include "cli/verbs/eval_tasks.h"
#include "dynslice/jobs/inputs.h"

namespace dynslice::cli {
namespace {

void add(OrderedJson& json, const std::string& name, const Measure& measure) {
  json[name] = measure.value;
  json[name + "_stderr"] = measure.stderr_ ? OrderedJson(*measure.stderr_) : OrderedJson();
}

OrderedJson figures_json(const TaskFigures& figures) {
  OrderedJson json;
  json["acc"] = figures.acc.value;
  json["stderr"] = figures.acc.stderr_ ? OrderedJson(*figures.acc.stderr_) : OrderedJson();
  if (figures.acc_norm) add(json, "acc_norm", *figures.acc_norm);
  if (figures.perplexity) add(json, "perplexity", *figures.perplexity);
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

void add(OrderedJson& json, const Stability& stability, const TaskOutcome& outcome) {
  json["stability"] = stability.value;
  json["stability_by_loss"] = stability.by_loss;
  json["questions_behind_stability"] = stability.questions_behind_value;
  json["questions_behind_stability_by_loss"] = stability.questions_behind_loss;
  json["agreement"] = stability.agreement;
  json["flipped"] = {{"lost", ids_of(outcome, stability.lost)},
                     {"gained", ids_of(outcome, stability.gained)},
                     {"changed", ids_of(outcome, stability.changed)}};
}

std::string format(const Measure& measure, int digits) {
  const std::string error = measure.stderr_ ? " ± " + format_fixed(*measure.stderr_, digits) : "";
  return format_fixed(measure.value, digits) + error;
}

std::string format_version(double version) {
  return format_fixed(version, version == static_cast<int64_t>(version) ? 0 : 1);
}

// The table of one model, or of two.
class Table {
 public:
  explicit Table(const TaskReport& report) : report_(report) {
    for (const TaskOutcome& outcome : report.answers.outcomes) has_perplexity_ = has_perplexity_ || outcome.is_cloze;
  }

  void print() {
    for (const TaskGroup& group : report_.selection.groups) {
      const auto& outcomes = report_.answers.outcomes;
      const TaskFigures before = report_.original ? figures_of(group, report_.original->outcomes) : TaskFigures{};
      add(group.name, format_version(group.version), "", figures_of(group, outcomes), before, nullptr);
    }
    for (size_t i = 0; i < report_.answers.outcomes.size(); ++i) {
      const TaskOutcome& outcome = report_.answers.outcomes[i];
      const TaskFigures before = report_.original ? figures_of(report_.original->outcomes[i]) : TaskFigures{};
      add(outcome.name, format_version(outcome.version), std::to_string(outcome.examples), figures_of(outcome), before,
          report_.original ? &report_.stability[i] : nullptr);
    }
    std::vector<std::string> header{"task", "version", "few-shot", "n", "acc", "acc_norm"};
    if (has_perplexity_) header.emplace_back("perplexity");
    if (report_.original)
      header.insert(header.end(), {"acc of the other", "stability", "agree", "lost", "gained", "changed"});
    print_table(header, rows_);
  }

 private:
  void add(const std::string& name, const std::string& version, const std::string& examples, const TaskFigures& figures,
           const TaskFigures& before, const Stability* stability) {
    std::vector<std::string> row{name,
                                 version,
                                 examples,
                                 std::to_string(figures.questions),
                                 format(figures.acc, 4),
                                 figures.acc_norm ? format(*figures.acc_norm, 4) : ""};
    if (has_perplexity_) row.push_back(figures.perplexity ? format(*figures.perplexity, 3) : "");
    if (report_.original) row.push_back(format(before.acc, 4));
    if (stability != nullptr) {
      row.insert(row.end(), {format_fixed(stability->value, 4), format_percent(stability->agreement),
                             std::to_string(stability->lost.size()), std::to_string(stability->gained.size()),
                             std::to_string(stability->changed.size())});
    } else if (report_.original) {
      row.resize(row.size() + 5);
    }
    rows_.push_back(std::move(row));
  }

  const TaskReport& report_;
  bool has_perplexity_ = false;
  std::vector<std::vector<std::string>> rows_;
};

int64_t count_questions(const TaskReport& report) {
  int64_t count = 0;
  for (const TaskQuestions& task : report.questions) count += static_cast<int64_t>(task.questions.size());
  return count;
}

double questions_per_second(const TaskReport& report) {
  return report.answers.seconds > 0 ? static_cast<double>(count_questions(report)) / report.answers.seconds : 0;
}

OrderedJson describe_data(const TaskQuestions& task) {
  OrderedJson json = {{"file", task.path.string()}, {"sha256", task.sha256}};
  if (task.examples > 0) json["examples"] = {{"file", task.examples_path.string()}, {"sha256", task.examples_sha256}};
  return json;
}

}  // namespace

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
    add(one, report.stability[i], outcome);
  }
  json["tasks_of"] = kHarnessVersion;
  json["questions"] = count_questions(report);
  json["questions_per_second"] = questions_per_second(report);
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

void print(const TaskReport& report, const ComputeOptions& compute, double seconds) {
  Table(report).print();
  int64_t cut = 0;
  for (const TaskOutcome& outcome : report.answers.outcomes) cut += figures_of(outcome).cut_questions;
  std::cout << "\nPrompts and figures of " << kHarnessVersion << ".\n";
  if (cut > 0) std::cout << cut << " questions are longer than the model's maximum and were cut at their beginning.\n";
  std::cout << count_questions(report) << " questions, " << format_fixed(questions_per_second(report), 1)
            << " questions/s in " << dtype_name(compute.dtype) << " on " << compute.device.str() << ", "
            << format_duration(seconds) << ", peak memory " << format_bytes(peak_rss_bytes()) << ".\n";
}

}  // namespace dynslice::cli
