// Questions that every model of a sweep is asked.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "dynslice/evaluate/task_run.h"
#include "dynslice/resources/estimate.h"
#include "jobs/quantizing.h"

namespace dynslice {

class SweepTasks {
 public:
  // Those of --tasks. Throws as tasks_named, load_questions and TaskRun do.
  SweepTasks(const QuantizeRequest& options, const Checkpoint& checkpoint, ProgressSink& progress);

  // Of tasks, and of groups of them in the place of their members.
  std::vector<std::string> names() const;
  void add_fingerprint(OrderedJson& json) const;
  ResourceEstimate estimate(const Quantizing& in, const ComputeOptions& compute, int64_t plans) const;

  // The accuracies [plan][name] of the models that the plans make, which agree with those of plan_losses. `text` is
  // a window of the walk that quantizes. `phase` keeps what is done of `plans`.
  std::vector<std::vector<double>> accuracies(const Quantizing& in, const FormatRule& rule, const TokenWindows& text,
                                              const std::vector<std::vector<int>>& plans, const PhaseOf& phase,
                                              ProgressSink& progress) const;

 private:
  std::vector<double> ask(const Checkpoint& model, const ComputeOptions& compute, const std::string& title,
                          ProgressSink& progress) const;

  TaskSelection selection_;
  std::vector<TaskQuestions> questions_;
  std::unique_ptr<TaskRun> run_;
};

}  // namespace dynslice
