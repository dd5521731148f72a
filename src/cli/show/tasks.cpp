#include "cli/show/tasks.h"

#include <string>
#include <vector>

#include "cli/show/terminal.h"
#include "dynslice/jobs/inputs.h"
#include "dynslice/tensor/dtype.h"

namespace dynslice::cli {
namespace {

std::string format(const Measure& measure, int digits) {
  const std::string error = measure.stderr_ ? " ± " + format_fixed(*measure.stderr_, digits) : "";
  return format_fixed(measure.value, digits) + error;
}

std::string format_version(double version) {
  return format_fixed(version, version == static_cast<int64_t>(version) ? 0 : 1);
}

// The table of one model, or of two.
class TaskTable {
 public:
  explicit TaskTable(const TaskReport& report) : report_(report) {
    for (const TaskOutcome& outcome : report.answers.outcomes) has_perplexity_ = has_perplexity_ || outcome.is_cloze;
  }

  void print(std::ostream& out) {
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
    print_table(out, header, rows_);
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

}  // namespace

void print_tasks(std::ostream& out, const TaskEvaluation& tasks) {
  const TaskReport& report = tasks.report;
  TaskTable(report).print(out);
  int64_t cut = 0;
  for (const TaskOutcome& outcome : report.answers.outcomes) cut += figures_of(outcome).cut_questions;
  out << "\nPrompts and figures of " << kHarnessVersion << ".\n";
  if (cut > 0) out << cut << " questions are longer than the model's maximum and were cut at their beginning.\n";
  out << report.count_questions() << " questions, " << format_fixed(report.questions_per_second(), 1)
      << " questions/s in " << dtype_name(tasks.compute.dtype) << " on " << tasks.compute.device.str() << ", "
      << format_duration(tasks.seconds) << ", peak memory " << format_bytes(tasks.peak.rss) << ".\n";
}

}  // namespace dynslice::cli
