#include "dynslice/jobs/planning.h"

#include <algorithm>

#include "dynslice/jobs/prepare.h"
#include "dynslice/modular/estimate.h"
#include "dynslice/score/estimate.h"
#include "dynslice/slice/estimate.h"
#include "jobs/modular_planning.h"
#include "jobs/plan_parts.h"
#include "jobs/trials.h"

namespace dynslice {
namespace {

// Whether the target is beyond the plan that removes most neurons, and within reach when heads go as well.
bool takes_heads(const PlanningRequest& options, const Checkpoint& checkpoint, SlicePlan plan) {
  if (!options.is_modular() || !options.allocation().reads_losses || !modular_options(options.modular).heads)
    return false;
  const auto reaches = [&] {
    return share_removed(options.target->quantity, plan, options, checkpoint) >= options.target->share;
  };
  if (reaches()) return false;
  for (size_t i = 0; i < plan.dims.size(); ++i) plan.heads.push_back(fewest_heads(checkpoint.config(), i));
  return reaches();
}

}  // namespace

RotationRefitOptions rotation_refit(const PlanningRequest& options) {
  RotationRefitOptions refit;
  const Refit kind = options.modular.refit.value_or(options.is_global() ? Refit::kAll : Refit::kNone);
  if (kind == Refit::kDense) refit.refit = RotationRefit::kWriters;
  if (kind == Refit::kAll) refit.refit = RotationRefit::kAll;
  if (options.modular.error_share) refit.error_share = *options.modular.error_share;
  if (options.modular.ridge) refit.ridge = *options.modular.ridge;
  return refit;
}

JournalPhase phase(Journal* journal, const std::string& name) {
  return journal != nullptr ? JournalPhase(*journal, name) : JournalPhase();
}

const LoadedText& Calibration::text() {
  if (!text_)
    text_ = load_windows(options_.calibration, TextUse::kCalibration, options_.common, checkpoint_, progress_);
  return *text_;
}

SlicePlan expected_plan(const PlanningRequest& options, const Checkpoint& checkpoint) {
  const auto plan_at = [&](double average) {
    const auto ratios =
        allocate_constant(checkpoint.config().layers.size(), allocate_options(options, average, average));
    return plan_of_ratios(options, checkpoint.config(), ratios, average, average);
  };
  if (options.target) {
    SlicePlan smallest = plan_at(largest_ratio(options));
    if (takes_heads(options, checkpoint, smallest)) return smallest;
  }
  return plan_at(average_of(options, checkpoint, plan_at));
}

ResourceEstimate estimate_planning(const PlanningRequest& options, const Checkpoint& checkpoint,
                                   const ComputeOptions& compute, Calibration& calibration) {
  ResourceEstimate estimate;
  const AllocatorRow& allocation = options.allocation();
  if (!allocation.reads_scores && !allocation.walks) return estimate;
  const TextAmount text = amount_of(calibration.text().windows);
  const bool scores_first = allocation.reads_scores && options.scores.empty();
  if (allocation.reads_losses) {
    const TextAmount gradients = gradient_text(options, calibration);
    estimate = options.is_modular() ? estimate_modular(checkpoint, compute, {text, {}, gradients, nullptr, 0})
                                    : estimate_slice(checkpoint, compute, {text, {}, gradients, false, nullptr, 0});
  } else {
    if (scores_first) estimate = estimate_score(checkpoint, compute, text);
    if (allocation.walks) estimate = estimate + estimate_slice(checkpoint, compute, {text, {}, {}, false, nullptr, 0});
  }
  if (allocation.reads_losses && scores_first) estimate = estimate + estimate_score(checkpoint, compute, text);
  int64_t trials = options.allocator() == Allocator::kSearch ? options.trials : 0;
  if (options.base_auto)
    trials = static_cast<int64_t>(base_candidates(expected_plan(options, checkpoint).average_ratio).size());
  if (trials > 0) estimate = estimate + PlanTrials::estimate(options, checkpoint, compute, calibration, trials);
  return estimate;
}

bool must_walk(const PlanningRequest& options) {
  const AllocatorRow& allocation = options.allocation();
  return allocation.walks || (allocation.reads_scores && (options.scores.empty() || options.base_auto));
}

Planned make_plan(const PlanningInputs& in) {
  const PlanningRequest& options = in.options;
  check_planning(options, in.checkpoint);
  if (options.allocation().walks) return plan_by_curves(in);
  const ModelConfig& config = in.checkpoint.config();
  if (options.allocator() == Allocator::kConstant) return {expected_plan(options, in.checkpoint), std::nullopt};
  const LayerScores scores = obtain_scores(in);
  const std::vector<double> redundancy = redundancies(scores, options, config);
  const auto plan_with = [&](double average, double base) {
    return plan_by_scores(in, redundancy, options.allocator(), average, base);
  };
  const auto plan_at = [&](double average) { return plan_with(average, std::min(base_of(options, average), average)); };
  const double average = average_of(options, in.checkpoint, plan_at);
  if (!options.base_auto) return {plan_at(average), scores};
  OrderedJson sweep;
  const double base =
      best_base(in, base_candidates(average), [&](double some) { return plan_with(average, some); }, sweep);
  // What a base costs in size is little, but a target is a target.
  const auto plan_with_share = [&](double other) { return plan_with(other, average > 0 ? base / average * other : 0); };
  Planned planned{
      options.average ? plan_with(average, base) : plan_with_share(average_of(options, in.checkpoint, plan_with_share)),
      scores};
  planned.plan.provenance["base_sweep"] = sweep;
  return planned;
}

}  // namespace dynslice
