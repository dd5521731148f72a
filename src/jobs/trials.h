// Plans that are tried on a part of the calibration text, and measured on another.
#pragma once

#include <string>
#include <vector>

#include "dynslice/jobs/planning.h"

namespace dynslice {

class PlanTrials {
 public:
  // `kind` names the phases of the journal: "base trial". Nothing is walked yet.
  PlanTrials(const PlanningInputs& inputs, std::string kind, int64_t count);

  // The loss of a plan, which `report` gets an entry of, `entry` first; its place there is the trial's number.
  double try_plan(const SlicePlan& plan, const std::string& label, OrderedJson entry, OrderedJson& report);

  // Windows that a trial calibrates on, and that it is measured on.
  static std::pair<int64_t, int64_t> windows(const PlanningRequest& options, int64_t all);
  // What that many trials will need.
  static ResourceEstimate estimate(const PlanningRequest& options, const Checkpoint& checkpoint,
                                   const ComputeOptions& compute, Calibration& calibration, int64_t count);

 private:
  // Mean negative log-likelihood (nats a token) of what the plan makes of the model, calibrated on the first windows
  // and measured on some that follow them, which calibrate no trial; as the journal has it, where it does.
  double loss_of(const SlicePlan& plan, int64_t number);
  double measure(const SlicePlan& plan, const JournalPhase& phase) const;

  const PlanningInputs& in_;
  const std::string kind_;
  const int64_t count_;
  TokenWindows sample_, held_out_;
};

// The base of `lr` among all candidates that loses least; reports all of them.
double best_base(const PlanningInputs& inputs, const std::vector<double>& bases,
                 const std::function<SlicePlan(double base)>& plan_of, OrderedJson& report);

// A plan that --allocate search may start from, and the allocator that made it.
struct SearchStart {
  std::string allocator;
  SlicePlan plan;
};

// The plan that --allocate search comes to: all starts are tried, then the ratios of the best of them are moved.
// `plan_of` makes a plan of a start and other ratios. provenance.search has all trials.
SlicePlan search_around(
    const PlanningInputs& inputs, const std::vector<SearchStart>& starts,
    const std::function<SlicePlan(const SlicePlan& start, const std::vector<double>& ratios)>& plan_of);

}  // namespace dynslice
