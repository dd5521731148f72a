#include "cli/planning.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <utility>

#include "cli/modular_planning.h"
#include "cli/resources.h"
#include "cli/terminal.h"
#include "cli/trials.h"
#include "dynslice/allocate/allocate.h"
#include "dynslice/allocate/budget.h"
#include "dynslice/allocate/target.h"
#include "dynslice/model/tensor_layout.h"
#include "dynslice/modular/modular.h"
#include "dynslice/score/score.h"
#include "dynslice/slice/slice.h"
#include "dynslice/slice/spectrum.h"
#include "dynslice/support/error.h"
#include "dynslice/support/log.h"

namespace dynslice::cli {
namespace {

// What every layer keeps of `whole` neurons or directions at that ratio.
int64_t least_kept(const PlanningOptions& options, int64_t whole) {
  return std::max<int64_t>(1,
                           static_cast<int64_t>(std::floor((1 - largest_ratio(options)) * static_cast<double>(whole))));
}

SlicePlan plan_of_ratios(const PlanningOptions& options, const ModelConfig& config, std::vector<double> ratios,
                         double average, double base) {
  SlicePlan plan;
  plan.method = options.method;
  plan.basis = options.basis;
  plan.allocator = options.allocator;
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

// Layer redundancies out of a score file.
std::vector<double> redundancies(const LayerScores& scores, const PlanningOptions& options, const ModelConfig& config) {
  const std::string where = options.scores.empty() ? "the scores" : options.scores;
  if (scores.metric != "lr" && scores.metric != "bi") {
    throw_error(ErrorKind::kBadInput, where, ": holds ", scores.metric, " scores; --allocate ", options.allocator,
                " needs lr or bi");
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

LayerScores read_score_file(const PlanningOptions& options) {
  LayerScores scores = read_scores(options.scores);
  const bool after_final_norm = scores.provenance.is_object() && scores.provenance.value("after_final_norm", false);
  if (options.is_paper() && !after_final_norm) {
    throw_error(ErrorKind::kUsage, options.scores, ": was not scored with --preset paper, which this plan asks for");
  }
  return scores;
}

LayerScores obtain_scores(const PlanningInputs& in) {
  const PlanningOptions& options = in.options;
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

// The share of the target's quantity that a plan removes.
double share_removed(const std::string& quantity, const SizeChange& change) {
  const auto share = [](double before, double after) { return 1 - after / before; };
  if (quantity == "flops") {
    return share(static_cast<double>(change.before.multiply_adds_per_token),
                 static_cast<double>(change.after.multiply_adds_per_token));
  }
  if (quantity == "params") {
    return share(static_cast<double>(change.before.parameters), static_cast<double>(change.after.parameters));
  }
  // A quantized source is smaller than anything that slicing writes: its size at the output's precision counts.
  return share(static_cast<double>(std::max(change.bytes_before, change.bytes_before_at_output_dtype)),
               static_cast<double>(change.bytes_after));
}

// The average that was asked for, or the one that reaches the target with the plans that `plan_at` makes.
double average_of(const PlanningOptions& options, const Checkpoint& checkpoint,
                  const std::function<SlicePlan(double average)>& plan_at) {
  if (options.average) return *options.average;
  const std::string& quantity = options.target->quantity;
  const AverageSearch search{options.target->share, largest_ratio(options),
                             quantity == "params"  ? "parameters"
                             : quantity == "flops" ? "multiply-adds a token"
                                                   : "bytes"};
  return find_average(search, [&](double average) {
    const ModelConfig sliced = sliced_config(checkpoint.config(), plan_at(average));
    return share_removed(quantity, size_change(checkpoint, sliced, output_dtype(options.out_dtype, checkpoint)));
  });
}

// The plans that measured curves give at any average.
using PlanAt = std::function<SlicePlan(double average)>;

PlanAt plans_by_parts(const PlanningInputs& in, const LayerWalk& walk) {
  const PlanningOptions& options = in.options;
  const ModelConfig& config = in.checkpoint.config();
  const int64_t least = least_kept(options, config.layers.front().intermediate_size);
  return [&options, &config,
          curves =
              measure_loss_curves(walk, in.calibration.text().windows, in.sensitivity, modular_options(options.modular),
                                  least, phase(in.journal, "losses"))](double average) {
    const GivenUp given = give_up(curves, config, average);
    SlicePlan plan = plan_of_ratios(options, config, given.ratios, average, average);
    plan.heads = given.heads;
    plan.provenance["losses"] = losses_of(curves, plan);
    return plan;
  };
}

// `importance` of the layers, none when the loss's gradient says what a direction is worth.
PlanAt plans_by_width(const PlanningInputs& in, const LayerWalk& walk, const std::vector<double>& importance) {
  const PlanningOptions& options = in.options;
  const ModelConfig& config = in.checkpoint.config();
  const int64_t least = least_kept(options, config.hidden_size);
  return [&options, &config,
          curves = measure_spectra(walk, in.calibration.text().windows, importance, in.sensitivity, least,
                                   phase(in.journal, "spectra"))](double average) {
    const auto width = static_cast<double>(config.hidden_size);
    std::vector<double> ratios = allocate_by_losses(curves, average * width * static_cast<double>(curves.size()));
    for (double& ratio : ratios) ratio /= width;
    return plan_of_ratios(options, config, ratios, average, average);
  };
}

SlicePlan plan_by_scores(const PlanningInputs& in, const std::vector<double>& redundancy, const std::string& allocator,
                         double average, double base) {
  const AllocateOptions allocate = allocate_options(in.options, average, base);
  return plan_of_ratios(in.options, in.checkpoint.config(),
                        allocator == "softmax" ? allocate_by_influence(redundancy, in.options.epsilon, allocate)
                                               : allocate_by_redundancy(redundancy, allocate),
                        average, base);
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
PlanningOptions as_large_as(const SlicePlan& plan, const PlanningInputs& in) {
  PlanningOptions options = in.options;
  if (options.target || plan.heads.empty()) return options;
  const ModelConfig sliced = sliced_config(in.checkpoint.config(), plan);
  const SizeChange change = size_change(in.checkpoint, sliced, output_dtype(options.out_dtype, in.checkpoint));
  options.average.reset();
  options.target = {"params", share_removed("params", change)};
  return options;
}

// What trials come to from the best of the plan by the loss, those by scores, and one between.
SlicePlan search_plan(const PlanningInputs& in, const SlicePlan& by_loss, const PlanAt& blend_at,
                      const std::vector<double>& redundancy) {
  const PlanningOptions options = as_large_as(by_loss, in);
  std::vector<SearchStart> starts = {{"loss", by_loss}};
  const auto start_from = [&](const std::string& name, const PlanAt& plan_at) {
    try {
      starts.push_back({name, plan_at(average_of(options, in.checkpoint, plan_at))});
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kUsage) throw;
      log(LogLevel::kInfo, "the search does without the plan of " + name + ": " + error.what());
    }
  };
  for (const char* allocator : {"softmax", "lr"}) {
    start_from(allocator, [&](double average) {
      return plan_by_scores(in, redundancy, allocator, average, kDefaultBaseShare * average);
    });
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
  return search_around(in, starts, [&](const SlicePlan& start, const std::vector<double>& ratios) {
    const auto with_average = [&](double other) { return plan_of(start, ratios, other); };
    return with_average(average_of(options, in.checkpoint, with_average));
  });
}

// By what removing neurons and heads, or directions of the stream, costs every layer.
Planned plan_by_curves(const PlanningInputs& in) {
  const PlanningOptions& options = in.options;
  const LayerWalk walk(in.checkpoint, in.compute, in.calibration.text().windows.length, in.progress);
  Planned planned;
  std::vector<double> redundancy, importance;
  if (options.allocator != "loss") {
    planned.scores = obtain_scores(in);
    redundancy = redundancies(*planned.scores, options, in.checkpoint.config());
  }
  if (options.allocator == "spectrum") {
    for (const double value : redundancy) importance.push_back(1 - value);
  }
  const auto plan_by = [&](const PlanAt& plan_at) { return plan_at(average_of(options, in.checkpoint, plan_at)); };
  const PlanAt by_curves =
      options.method == "modular" ? plans_by_parts(in, walk) : plans_by_width(in, walk, importance);
  const auto blend_at = [&](double average) { return blend(in, by_curves(average), redundancy); };
  planned.plan = options.allocator == "blend" ? plan_by(blend_at) : plan_by(by_curves);
  if (options.allocator == "search") planned.plan = search_plan(in, planned.plan, blend_at, redundancy);
  return planned;
}

}  // namespace

AllocateOptions allocate_options(const PlanningOptions& options, double average, double base) {
  AllocateOptions allocate;
  allocate.average = average;
  allocate.base = base;
  // The reference has no cap; a ratio that a layer cannot have is then refused by the plan's own check.
  allocate.max_ratio =
      options.max_ratio.value_or(options.is_paper() ? std::numeric_limits<double>::infinity() : allocate.max_ratio);
  return allocate;
}

double largest_ratio(const PlanningOptions& options) {
  return std::min(kLargestRatio, options.max_ratio.value_or(AllocateOptions().max_ratio));
}

RotationRefitOptions rotation_refit(const PlanningOptions& options) {
  RotationRefitOptions refit;
  const std::string kind = options.modular.refit.value_or(options.basis == "global" ? "all" : "none");
  if (kind == "dense") refit.refit = RotationRefit::kWriters;
  if (kind == "all") refit.refit = RotationRefit::kAll;
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

SlicePlan expected_plan(const PlanningOptions& options, const Checkpoint& checkpoint) {
  const auto plan_at = [&](double average) {
    const auto ratios =
        allocate_constant(checkpoint.config().layers.size(), allocate_options(options, average, average));
    return plan_of_ratios(options, checkpoint.config(), ratios, average, average);
  };
  return plan_at(average_of(options, checkpoint, plan_at));
}

ResourceEstimate estimate_planning(const PlanningOptions& options, const Checkpoint& checkpoint,
                                   const ComputeOptions& compute, Calibration& calibration) {
  ResourceEstimate estimate;
  if (options.allocator == "constant") return estimate;
  const TextAmount text = amount_of(calibration.text().windows);
  if (options.is_by_loss() && options.method == "modular") {
    estimate = estimate_modular(checkpoint, compute, {text, {}, gradient_text(options, calibration), nullptr, 0});
  } else if (options.is_by_loss()) {
    estimate = estimate_sensitivity(checkpoint, compute, gradient_text(options, calibration)) +
               estimate_slice(checkpoint, compute, {text, {}, false, nullptr, 0});
  } else {
    if (options.scores.empty()) estimate = estimate_score(checkpoint, compute, text);
    if (options.allocator == "spectrum")
      estimate = estimate + estimate_slice(checkpoint, compute, {text, {}, false, nullptr, 0});
  }
  if (options.is_by_both() && options.scores.empty()) estimate = estimate + estimate_score(checkpoint, compute, text);
  int64_t trials = options.allocator == "search" ? options.trials : 0;
  if (options.base_auto)
    trials = static_cast<int64_t>(base_candidates(expected_plan(options, checkpoint).average_ratio).size());
  if (trials > 0) estimate = estimate + Trials::estimate(options, checkpoint, compute, calibration, trials);
  return estimate;
}

bool must_walk(const PlanningOptions& options) {
  const bool by_scores_alone = options.allocator == "lr" || options.allocator == "softmax";
  if (by_scores_alone) return options.scores.empty() || options.base_auto;
  return options.allocator != "constant";
}

Planned make_plan(const PlanningInputs& in) {
  const PlanningOptions& options = in.options;
  check_planning(options, in.checkpoint);
  if (options.is_by_loss() || options.allocator == "spectrum") return plan_by_curves(in);
  const ModelConfig& config = in.checkpoint.config();
  if (options.allocator == "constant") return {expected_plan(options, in.checkpoint), std::nullopt};
  const LayerScores scores = obtain_scores(in);
  const std::vector<double> redundancy = redundancies(scores, options, config);
  const auto plan_with = [&](double average, double base) {
    return plan_by_scores(in, redundancy, options.allocator, average, base);
  };
  const auto plan_at = [&](double average) {
    return plan_with(average, options.base ? std::min(*options.base, average) : kDefaultBaseShare * average);
  };
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

}  // namespace dynslice::cli
