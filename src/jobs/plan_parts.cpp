#include "jobs/plan_parts.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "dynslice/plan/target.h"
#include "dynslice/score/score.h"
#include "dynslice/support/error.h"
#include "dynslice/support/format.h"

namespace dynslice {
namespace {

LayerScores read_score_file(const PlanningRequest& options) {
  LayerScores scores = read_scores(options.scores);
  const bool after_final_norm = scores.provenance.is_object() && scores.provenance.value("after_final_norm", false);
  if (options.is_paper() && !after_final_norm) {
    throw_error(ErrorKind::kUsage, options.scores, ": was not scored with --preset paper, which this plan asks for");
  }
  return scores;
}

}  // namespace

AllocateOptions allocate_options(const PlanningRequest& options, double average, double base) {
  AllocateOptions allocate;
  allocate.average = average;
  allocate.base = base;
  // The reference has no cap; a ratio that a layer cannot have is then refused by the plan's own check.
  allocate.max_ratio =
      options.max_ratio.value_or(options.is_paper() ? std::numeric_limits<double>::infinity() : allocate.max_ratio);
  return allocate;
}

double base_of(const PlanningRequest& options, double average) {
  constexpr double kShare = 0.6;
  return options.base.value_or(kShare * average);
}

double largest_ratio(const PlanningRequest& options) {
  return std::min(kLargestRatio, options.max_ratio.value_or(AllocateOptions().max_ratio));
}

SlicePlan plan_of_ratios(const PlanningRequest& options, const ModelConfig& config, std::vector<double> ratios,
                         double average, double base) {
  SlicePlan plan;
  plan.method = options.method;
  plan.basis = options.basis;
  plan.allocator = name_of(options.allocator());
  plan.average_ratio = average;
  plan.base = base;
  plan.round_to = options.round_to.value_or(options.is_paper() ? 1 : plan.round_to);
  plan.hidden_size = config.hidden_size;
  if (plan.is_modular()) plan.intermediate_size = config.layers.front().intermediate_size;
  plan.ratios = std::move(ratios);
  if (plan.round_to > plan.whole()) {
    throw_error(ErrorKind::kUsage, "--round-to ", plan.round_to, ": is above the model's ",
                plan.is_modular() ? "intermediate" : "hidden", " size of ", plan.whole());
  }
  plan.dims = round_dimensions(plan.ratios, plan.whole(), plan.round_to);
  plan.head_width = options.slice_head || plan.is_global()
                        ? round_dimensions({plan.average_ratio}, config.hidden_size, plan.round_to).front()
                        : config.hidden_size;
  for (size_t i = 0; i < plan.ratios.size(); ++i) {
    if (plan.ratios[i] > kLargestRatio) {
      throw_error(ErrorKind::kUsage, "layer ", i, " would lose ", format_percent(plan.ratios[i]), " of its width, and ",
                  format_percent(kLargestRatio), " is the most it can; lower --avg, raise --base, or give --max-ratio");
    }
  }
  return plan;
}

double share_removed(SizeQuantity quantity, const SlicePlan& plan, const PlanningRequest& options,
                     const Checkpoint& checkpoint) {
  const SizeChange change =
      size_change(checkpoint, sliced_config(checkpoint.config(), plan), output_dtype(options.out_dtype, checkpoint));
  const auto share = [](double before, double after) { return 1 - after / before; };
  if (quantity == SizeQuantity::kFlops) {
    return share(static_cast<double>(change.before.multiply_adds_per_token),
                 static_cast<double>(change.after.multiply_adds_per_token));
  }
  if (quantity == SizeQuantity::kParams) {
    return share(static_cast<double>(change.before.parameters), static_cast<double>(change.after.parameters));
  }
  // A quantized source is smaller than anything that slicing writes: its size at the output's precision counts.
  return share(static_cast<double>(std::max(change.bytes_before, change.bytes_before_at_output_dtype)),
               static_cast<double>(change.bytes_after));
}

double average_of(const PlanningRequest& options, const Checkpoint& checkpoint, const PlanAt& plan_at) {
  if (options.average) return *options.average;
  const SizeQuantity quantity = options.target->quantity;
  const AverageSearch search{options.target->share, largest_ratio(options), row_of(quantity).meaning};
  return find_average(search,
                      [&](double average) { return share_removed(quantity, plan_at(average), options, checkpoint); });
}

LayerScores obtain_scores(const PlanningInputs& in) {
  const PlanningRequest& options = in.options;
  if (!options.scores.empty()) return read_score_file(options);
  const LoadedText& text = in.calibration.text();
  const LayerWalk walk(in.checkpoint, in.compute, text.windows.length, in.progress);
  LayerScores scores =
      score_layers(walk, text.windows,
                   {.metric = {}, .after_final_norm = options.is_paper(), .journal = phase(in.journal, "scoring")});
  scores.provenance["calibration"] = describe(text, options.calibration);
  scores.provenance["after_final_norm"] = options.is_paper();
  return scores;
}

std::vector<double> redundancies(const LayerScores& scores, const PlanningRequest& options, const ModelConfig& config) {
  const std::string where = options.scores.empty() ? "the scores" : options.scores;
  if (scores.metric != "lr" && scores.metric != "bi") {
    throw_error(ErrorKind::kBadInput, where, ": holds ", scores.metric, " scores; --allocate ",
                name_of(options.allocator()), " needs lr or bi");
  }
  if (static_cast<int64_t>(scores.values.size()) != config.num_layers()) {
    throw_error(ErrorKind::kBadInput, where, ": has ", scores.values.size(), " scores; the model has ",
                config.num_layers(), " layers");
  }
  std::vector<double> values = scores.values;
  if (scores.metric == "bi") {
    for (double& value : values) value = 1 - value;
  }
  return values;
}

SlicePlan plan_by_scores(const PlanningInputs& in, const std::vector<double>& redundancy, Allocator allocator,
                         double average, double base) {
  const AllocateOptions allocate = allocate_options(in.options, average, base);
  return plan_of_ratios(in.options, in.checkpoint.config(),
                        allocator == Allocator::kSoftmax
                            ? allocate_by_influence(redundancy, in.options.epsilon, allocate)
                            : allocate_by_redundancy(redundancy, allocate),
                        average, base);
}

}  // namespace dynslice
