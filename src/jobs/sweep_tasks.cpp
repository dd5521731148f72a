#include "jobs/sweep_tasks.h"

#include <map>

#include "dynslice/quantize/planned_checkpoint.h"
#include "dynslice/quantize/quant_plan.h"
#include "dynslice/resources/estimate.h"
#include "dynslice/text/tokenizer/tokenizer.h"
#include "dynslice/walk/memory_plan.h"
#include "jobs/tasks.h"

namespace dynslice {
SweepTasks::SweepTasks(const QuantizeRequest& options, const Checkpoint& checkpoint, ProgressSink& progress)
    : selection_(tasks_named(options.tasks)),
      questions_(load_questions(selection_, {options.task_limit, std::nullopt}, options.common.data_dir, progress)) {
  run_ = std::make_unique<TaskRun>(questions_, *load_tokenizer(checkpoint.path()), checkpoint);
}

std::vector<std::string> SweepTasks::names() const {
  std::vector<std::string> names;
  for (const TaskGroup& group : selection_.groups) names.push_back(group.name);
  for (const TaskInfo& task : selection_.tasks) {
    if (!selection_.is_of_group(task.name)) names.push_back(task.name);
  }
  return names;
}

void SweepTasks::add_fingerprint(OrderedJson& json) const {
  for (const TaskQuestions& task : questions_) json[task.task.name + " sha256"] = task.sha256;
}

ResourceEstimate SweepTasks::estimate(const Quantizing& in, const ComputeOptions& compute, int64_t plans) const {
  ResourceEstimate one =
      estimate_answers(in.checkpoint, compute, run_->amount(), default_turn_bytes(in.checkpoint, compute.device));
  int64_t weights = 0;
  for (int64_t layer = 0; layer < in.config().num_layers(); ++layer) weights += layer_weights(in.config(), layer);
  one.parts.push_back({"quantized_layers", static_cast<uint64_t>(weights) * levels_of(in.options).size()});
  ResourceEstimate all = one;
  for (int64_t plan = 1; plan < plans; ++plan) all.work += one.work;
  return all;
}

std::vector<std::vector<double>> SweepTasks::accuracies(const Quantizing& in, const FormatRule& rule,
                                                        const TokenWindows& text,
                                                        const std::vector<std::vector<int>>& plans,
                                                        const PhaseOf& phase, ProgressSink& progress) const {
  std::unique_ptr<QuantizedLevels> levels;
  std::map<std::vector<int>, std::vector<double>> known;
  for (const std::vector<int>& plan : plans) {
    if (known.contains(plan)) continue;
    const std::string number = std::to_string(known.size() + 1);
    const JournalPhase asking = phase("asking plan " + number);
    if (const auto kept = asking.result()) {
      known[plan] = kept->get<std::vector<double>>();
      continue;
    }
    if (!levels) {
      const LayerWalk walk(in.checkpoint, in.compute, text.length, progress);
      const TrialQuantizer quantizer{rule, in.by_gptq() ? in.calibration : nullptr, in.gptq()};
      levels = std::make_unique<QuantizedLevels>(walk, text, quantizer, levels_of(in.options));
    }
    known[plan] = ask(PlannedCheckpoint(in.checkpoint, *levels, plan), in.compute, " of plan " + number, progress);
    asking.finish(known[plan]);
  }
  std::vector<std::vector<double>> all;
  for (const std::vector<int>& plan : plans) all.push_back(known.at(plan));
  return all;
}

std::vector<double> SweepTasks::ask(const Checkpoint& model, const ComputeOptions& compute, const std::string& title,
                                    ProgressSink& progress) const {
  AnswerOptions asking;
  asking.stream_bytes = default_turn_bytes(model, compute.device);
  asking.title = title;
  const std::vector<TaskOutcome> outcomes = run_->run(model, compute, asking, progress);
  std::vector<double> accuracies;
  for (const TaskGroup& group : selection_.groups) accuracies.push_back(figures_of(group, outcomes).acc.value);
  for (const TaskOutcome& outcome : outcomes) {
    if (!selection_.is_of_group(outcome.name)) accuracies.push_back(figures_of(outcome).acc.value);
  }
  return accuracies;
}

}  // namespace dynslice
