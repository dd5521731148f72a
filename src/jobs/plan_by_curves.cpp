// Plans by measured curves: of --allocate loss, uniform, spectrum, blend and search.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "dynslice/modular/modular.h"
#include "dynslice/plan/budget.h"
#include "dynslice/slice/spectrum.h"
#include "dynslice/support/error.h"
#include "dynslice/support/format.h"
#include "dynslice/support/log.h"
#include "jobs/modular_planning.h"
#include "jobs/plan_parts.h"
#include "jobs/trials.h"

namespace dynslice {
namespace {

// Of a uniform plan: what one of the same size with shapes of their own would cost every layer.
constexpr const char* kFreeLosses = "losses_of_free_shapes";

// Says what equal shapes cost.
void tell_price(const SlicePlan& plan) {
  const auto sum = [&](const char* key) {
    double total = 0;
    for (const auto& loss : plan.provenance.at(key)) total += loss.get<double>();
    return total;
  };
  log(LogLevel::kInfo, "equal shapes are expected to cost " + format_fixed(sum("losses"), 3) +
                           " nats a token, shapes of their own (--allocate loss) " + format_fixed(sum(kFreeLosses), 3));
}

// What every layer keeps of `whole` neurons or directions at that ratio.
int64_t least_kept(const PlanningRequest& options, int64_t whole) {
  return std::max<int64_t>(1,
                           static_cast<int64_t>(std::floor((1 - largest_ratio(options)) * static_cast<double>(whole))));
}

// Rounding up to whole neurons or directions can take a layer a little beyond the largest ratio.
std::vector<double> at_most(double limit, std::vector<double> ratios) {
  for (double& ratio : ratios) ratio = std::min(ratio, limit);
  return ratios;
}

PlanAt plans_by_parts(const PlanningInputs& in, const LayerWalk& walk) {
  const PlanningRequest& options = in.options;
  const ModelConfig& config = in.checkpoint.config();
  const int64_t least = least_kept(options, config.layers.front().intermediate_size);
  return [&options, &config,
          curves =
              measure_loss_curves(walk, in.calibration.text().windows, in.sensitivity, modular_options(options.modular),
                                  least, phase(in.journal, "losses"))](double average) {
    const auto plan_by = [&](const GivenUp& given) {
      SlicePlan plan = plan_of_ratios(options, config, at_most(largest_ratio(options), given.ratios), average, average);
      plan.heads = given.heads;
      plan.provenance["losses"] = losses_of(curves, plan);
      return plan;
    };
    if (options.allocator() != Allocator::kUniform) return plan_by(give_up(curves, config, average));
    const double most = most_alike(curves, config);
    if (options.average && average > most) {
      throw_error(ErrorKind::kUsage, "layers of equal shapes can give up ", 100 * most,
                  "% of their weights at most; ask for less or raise --max-ratio");
    }
    SlicePlan plan = plan_by(give_up_alike(curves, config, average));
    plan.provenance[kFreeLosses] = plan_by(give_up(curves, config, average)).provenance["losses"];
    return plan;
  };
}

// `importance` of the layers, none when the loss's gradient says what a direction is worth.
PlanAt plans_by_width(const PlanningInputs& in, const LayerWalk& walk, const std::vector<double>& importance) {
  const PlanningRequest& options = in.options;
  const ModelConfig& config = in.checkpoint.config();
  const int64_t least = least_kept(options, config.hidden_size);
  return [&options, &config,
          curves = measure_spectra(walk, in.calibration.text().windows, importance, in.sensitivity, least,
                                   phase(in.journal, "spectra"))](double average) {
    const auto width = static_cast<double>(config.hidden_size);
    std::vector<double> ratios = allocate_by_losses(curves, average * width * static_cast<double>(curves.size()));
    for (double& ratio : ratios) ratio /= width;
    return plan_of_ratios(options, config, at_most(largest_ratio(options), std::move(ratios)), average, average);
  };
}

// Ratios halfway between those of a plan by the loss and those that block influence gives at the same mean; heads as
// the former has them.
SlicePlan blend(const PlanningInputs& in, const SlicePlan& by_loss, const std::vector<double>& redundancy) {
  std::vector<double> ratios = by_loss.ratios;
  const double mean = std::min(std::accumulate(ratios.begin(), ratios.end(), 0.0) / static_cast<double>(ratios.size()),
                               largest_ratio(in.options));
  const std::vector<double> by_influence =
      allocate_by_influence(redundancy, in.options.epsilon, allocate_options(in.options, mean, mean));
  for (size_t i = 0; i < ratios.size(); ++i) ratios[i] = (ratios[i] + by_influence[i]) / 2;
  const double average = by_loss.average_ratio;
  SlicePlan plan = plan_of_ratios(in.options, in.checkpoint.config(), std::move(ratios), average, average);
  plan.heads = by_loss.heads;
  return plan;
}

// An average of neurons is not one of neurons and heads: plans that are to be compared with one that removes heads too
// are asked for its parameters.
PlanningRequest as_large_as(const SlicePlan& plan, const PlanningInputs& in) {
  PlanningRequest options = in.options;
  if (options.target || plan.heads.empty()) return options;
  options.average.reset();
  options.target = {SizeQuantity::kParams, share_removed(SizeQuantity::kParams, plan, options, in.checkpoint)};
  return options;
}

// What trials come to from the best of the plan by the loss, those by scores, and one between.
SlicePlan search_plan(const PlanningInputs& in, const SlicePlan& by_loss, const PlanAt& blend_at,
                      const std::vector<double>& redundancy) {
  const PlanningRequest options = as_large_as(by_loss, in);
  std::vector<SearchStart> starts = {{"loss", by_loss}};
  const auto start_from = [&](const std::string& name, const PlanAt& plan_at) {
    try {
      starts.push_back({name, plan_at(average_of(options, in.checkpoint, plan_at))});
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kUsage) throw;
      log(LogLevel::kInfo, "the search does without the plan of " + name + ": " + error.what());
    }
  };
  // `lr` without a base is as far from constant as it goes: the search comes back along the plan's own deviations.
  for (const Allocator allocator : {Allocator::kSoftmax, Allocator::kLr}) {
    start_from(name_of(allocator),
               [&](double average) { return plan_by_scores(in, redundancy, allocator, average, 0); });
  }
  start_from("blend", blend_at);

  const double limit = largest_ratio(options);
  // The start's plan with these ratios in the place of its own, all brought nearer to none or to the limit for another
  // average.
  const auto plan_of = [&](const SlicePlan& start, std::vector<double> ratios, double other) {
    const double average = start.average_ratio;
    for (double& ratio : ratios) {
      ratio = other <= average ? ratio * (average > 0 ? other / average : 0)
                               : ratio + (limit - ratio) * (other - average) / (limit - average);
    }
    SlicePlan plan = plan_of_ratios(options, in.checkpoint.config(), std::move(ratios), other, other);
    plan.heads = start.heads;
    return plan;
  };
  // What other widths cost in size is little, but a target is a target, for every trial.
  SlicePlan found = search_around(in, starts, [&](const SlicePlan& start, const std::vector<double>& ratios) {
    const auto with_average = [&](double other) { return plan_of(start, ratios, other); };
    return with_average(average_of(options, in.checkpoint, with_average));
  });
  // What was asked for is a share of what the plan by the loss takes from, heads included where they may go.
  if (in.options.average) found.average_ratio = *in.options.average;
  if (found.heads.empty() && !by_loss.heads.empty()) {
    for (const LayerShape& shape : in.checkpoint.config().layers)
      found.heads.push_back({shape.num_attention_heads, shape.num_key_value_heads});
  }
  return found;
}

}  // namespace

Planned plan_by_curves(const PlanningInputs& in) {
  const PlanningRequest& options = in.options;
  const LayerWalk walk(in.checkpoint, in.compute, in.calibration.text().windows.length, in.progress);
  Planned planned;
  std::vector<double> redundancy, importance;
  if (options.allocation().reads_scores) {
    planned.scores = obtain_scores(in);
    redundancy = redundancies(*planned.scores, options, in.checkpoint.config());
  }
  if (options.allocator() == Allocator::kSpectrum) {
    for (const double value : redundancy) importance.push_back(1 - value);
  }
  const auto plan_by = [&](const PlanAt& plan_at) { return plan_at(average_of(options, in.checkpoint, plan_at)); };
  const PlanAt by_curves = options.is_modular() ? plans_by_parts(in, walk) : plans_by_width(in, walk, importance);
  const auto blend_at = [&](double average) { return blend(in, by_curves(average), redundancy); };
  planned.plan = options.allocator() == Allocator::kBlend ? plan_by(blend_at) : plan_by(by_curves);
  if (options.allocator() == Allocator::kSearch) planned.plan = search_plan(in, planned.plan, blend_at, redundancy);
  if (options.allocator() == Allocator::kUniform) tell_price(planned.plan);
  return planned;
}

}  // namespace dynslice
