#include "jobs/trials.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "dynslice/modular/estimate.h"
#include "dynslice/plan/allocate.h"
#include "dynslice/plan/search.h"
#include "dynslice/resources/estimate.h"
#include "dynslice/slice/estimate.h"
#include "dynslice/slice/slice.h"
#include "dynslice/support/error.h"
#include "dynslice/support/format.h"
#include "dynslice/support/log.h"
#include "jobs/modular_planning.h"
#include "jobs/plan_parts.h"

namespace dynslice {

std::pair<int64_t, int64_t> PlanTrials::windows(const PlanningRequest& options, int64_t all) {
  const int64_t trial = std::min(options.sweep_samples, all - std::max<int64_t>(1, all / 3));
  return {trial, std::min(std::max<int64_t>(1, trial / 2), all - trial)};
}

ResourceEstimate PlanTrials::estimate(const PlanningRequest& options, const Checkpoint& checkpoint,
                                      const ComputeOptions& compute, Calibration& calibration, int64_t count) {
  const TokenWindows& all = calibration.text().windows;
  const auto [trial, held] = windows(options, all.count);
  const TextAmount sample{trial, all.length}, held_out{held, all.length};
  const TextAmount gradients = gradient_text(options, calibration);
  const ResourceEstimate one =
      options.is_modular()
          ? estimate_modular(checkpoint, compute, {sample, held_out, gradients, nullptr, 0})
          : estimate_slice(checkpoint, compute,
                           {sample, held_out, gradients, rotation_refit(options).is_any(), nullptr, 0});
  ResourceEstimate estimate;
  for (int64_t i = 0; i < count; ++i) estimate = estimate + one;
  return estimate;
}

PlanTrials::PlanTrials(const PlanningInputs& inputs, std::string kind, int64_t count)
    : in_(inputs), kind_(std::move(kind)), count_(count) {
  const TokenWindows& all = in_.calibration.text().windows;
  if (all.count < 2) {
    throw_error(ErrorKind::kUsage, "trials of --base auto or --allocate search need at least 2 calibration windows: ",
                "--samples 2 or more");
  }
  const auto [trial, held] = windows(in_.options, all.count);
  sample_ = all.part(0, trial);
  held_out_ = all.part(trial, held);
}

double PlanTrials::measure(const SlicePlan& plan, const JournalPhase& phase) const {
  const LayerWalk walk(in_.checkpoint, in_.compute, sample_.length, in_.progress);
  if (!plan.is_modular()) {
    const RotationRefitOptions refit = rotation_refit(in_.options);
    return *slice_model(walk, plan, sample_, {}, &held_out_, phase, refit).held_out_loss;
  }
  const ModularOptions options = modular_options(in_.options.modular);
  return *compress_layers(walk, plan, sample_, in_.sensitivity, options, {}, &held_out_, phase).held_out_loss;
}

double PlanTrials::loss_of(const SlicePlan& plan, int64_t number) {
  const JournalPhase trial = phase(in_.journal, kind_ + " " + std::to_string(number) + " of " + std::to_string(count_));
  if (const auto kept = trial.result()) return kept->get<double>();
  const double loss = measure(plan, trial);
  trial.finish(loss);
  return loss;
}

double PlanTrials::try_plan(const SlicePlan& plan, const std::string& label, OrderedJson entry, OrderedJson& report) {
  const double loss = loss_of(plan, static_cast<int64_t>(report.size()) + 1);
  log(LogLevel::kInfo, label + ": held-out perplexity " + format_fixed(std::exp(loss), 3));
  entry["held_out_loss"] = loss;
  entry["held_out_perplexity"] = std::exp(loss);
  report.push_back(std::move(entry));
  return loss;
}

double best_base(const PlanningInputs& inputs, const std::vector<double>& bases,
                 const std::function<SlicePlan(double base)>& plan_of, OrderedJson& report) {
  PlanTrials trials(inputs, "base trial", static_cast<int64_t>(bases.size()));
  double best = 0, least = std::numeric_limits<double>::infinity();
  for (const double base : bases) {
    const double loss = trials.try_plan(plan_of(base), "base " + format_percent(base), {{"base", base}}, report);
    if (loss >= least) continue;
    least = loss;
    best = base;
  }
  return best;
}

SlicePlan search_around(
    const PlanningInputs& inputs, const std::vector<SearchStart>& starts,
    const std::function<SlicePlan(const SlicePlan& start, const std::vector<double>& ratios)>& plan_of) {
  const int64_t most = inputs.options.trials;
  PlanTrials trials(inputs, "search trial", most);
  OrderedJson report = OrderedJson::array();
  const auto try_plan = [&](const SlicePlan& plan, OrderedJson entry) {
    const std::string label = "trial " + std::to_string(report.size() + 1) + " of " + std::to_string(most);
    return trials.try_plan(plan, label, std::move(entry), report);
  };
  const SlicePlan* start = &starts.front().plan;
  double least = std::numeric_limits<double>::infinity();
  for (const SearchStart& one : starts) {
    if (static_cast<int64_t>(report.size()) == most) break;
    const double loss = try_plan(one.plan, {{"start", one.allocator}});
    report.back()["better"] = loss < least;
    if (loss >= least) continue;
    least = loss;
    start = &one.plan;
  }
  const size_t started = report.size() - 1;  // where the moves' trials begin, the start's own not among them
  RatioSearchOptions options;
  options.trials = most - static_cast<int64_t>(started);
  options.max_ratio = largest_ratio(inputs.options);
  const RatioSearchResult found =
      search_ratios(start->ratios, options, [&](const std::vector<double>& ratios, int64_t trial) {
        return trial == 0 ? least : try_plan(plan_of(*start, ratios), {});
      });
  for (size_t trial = 1; trial < found.trials.size(); ++trial) {
    const RatioTrial& moved = found.trials[trial];
    report[started + trial].update({{"mode", moved.mode}, {"step", moved.step}, {"better", moved.is_better}});
  }
  const bool has_moved = found.ratios != start->ratios;
  SlicePlan plan = has_moved ? plan_of(*start, found.ratios) : *start;
  plan.provenance["search"] = report;
  return plan;
}

}  // namespace dynslice
