#include "cli/planning.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <iostream>
#include <limits>
#include <numeric>
#include <utility>

#include "cli/modular_planning.h"
#include "cli/resources.h"
#include "cli/terminal.h"
#include "dynslice/allocate/allocate.h"
#include "dynslice/allocate/budget.h"
#include "dynslice/allocate/target.h"
#include "dynslice/model/tensor_layout.h"
#include "dynslice/modular/modular.h"
#include "dynslice/score/score.h"
#include "dynslice/slice/slice.h"
#include "dynslice/support/error.h"
#include "dynslice/support/log.h"

namespace dynslice::cli {
namespace {

constexpr double kDefaultBaseShare = 0.6;

bool is_paper(const PlanningOptions& options) { return options.preset == "paper"; }

AllocateOptions allocate_options(const PlanningOptions& options, double average, double base) {
  AllocateOptions allocate;
  allocate.average = average;
  allocate.base = base;
  // The reference has no cap; a ratio that a layer cannot have is then refused by the plan's own check.
  allocate.max_ratio =
      options.max_ratio.value_or(is_paper(options) ? std::numeric_limits<double>::infinity() : allocate.max_ratio);
  return allocate;
}

SlicePlan plan_of_ratios(const PlanningOptions& options, const ModelConfig& config, std::vector<double> ratios,
                         double average, double base) {
  SlicePlan plan;
  plan.method = options.method;
  plan.basis = options.basis;
  plan.allocator = options.allocator;
  plan.average_ratio = average;
  plan.base = base;
  plan.round_to = options.round_to.value_or(is_paper(options) ? 1 : plan.round_to);
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
std::vector<double> redundancies(const LayerScores& scores, const std::string& where, const std::string& allocator,
                                 const ModelConfig& config) {
  if (scores.metric != "lr" && scores.metric != "bi") {
    throw_error(ErrorKind::kBadInput, where, ": holds ", scores.metric, " scores; --allocate ", allocator,
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
  if (is_paper(options) && !after_final_norm) {
    throw_error(ErrorKind::kUsage, options.scores, ": was not scored with --preset paper, which this plan asks for");
  }
  return scores;
}

LayerScores obtain_scores(const PlanningOptions& options, const Checkpoint& checkpoint, const ComputeOptions& compute,
                          Calibration& calibration, Journal* journal, ProgressSink& progress) {
  if (!options.scores.empty()) return read_score_file(options);
  const LoadedText& text = calibration.text();
  const LayerWalk walk(checkpoint, compute, text.windows.length, progress);
  LayerScores scores = score_layers(
      walk, text.windows, {.metric = {}, .after_final_norm = is_paper(options), .journal = phase(journal, "scoring")});
  scores.provenance["calibration"] = describe(text, options.calibration);
  scores.provenance["after_final_norm"] = is_paper(options);
  return scores;
}

// How many calibration windows a trial of --base auto slices by, and how many it measures on.
std::pair<int64_t, int64_t> trial_windows(const PlanningOptions& options, int64_t windows) {
  const int64_t trial = std::min(options.sweep_samples, windows - std::max<int64_t>(1, windows / 3));
  return {trial, std::min(std::max<int64_t>(1, trial / 2), windows - trial)};
}

// Tries every base on the first calibration windows and measures the loss on some that follow them, which calibrate
// no trial. Returns the best base and reports all of them.
double sweep_base(const PlanningOptions& options, const Checkpoint& checkpoint, const ComputeOptions& compute,
                  const std::vector<double>& redundancy, double average, Calibration& calibration,
                  SensitivitySource& sensitivity, Journal* journal, ProgressSink& progress, OrderedJson& report) {
  const TokenWindows& windows = calibration.text().windows;
  const auto [trial, held] = trial_windows(options, windows.count);
  const TokenWindows sample = windows.part(0, trial), held_out = windows.part(trial, held);

  const LayerWalk walk(checkpoint, compute, sample.length, progress);
  double best_base = 0, best_loss = std::numeric_limits<double>::infinity();
  const std::vector<double> candidates = base_candidates(average);
  for (const double base : candidates) {
    const JournalPhase trial_phase =
        phase(journal, "base trial " + std::to_string(report.size() + 1) + " of " + std::to_string(candidates.size()));
    const auto ratios = allocate_by_redundancy(redundancy, allocate_options(options, average, base));
    const SlicePlan plan = plan_of_ratios(options, checkpoint.config(), ratios, average, base);
    const auto measured = trial_phase.result();
    const auto try_plan = [&] {
      if (!plan.is_modular()) return *slice_model(walk, plan, sample, {}, &held_out, trial_phase).held_out_loss;
      const ModularOptions modular = modular_options(options.modular);
      return *compress_mlps(walk, plan, sample, sensitivity, modular, {}, &held_out, trial_phase).held_out_loss;
    };
    const double loss = measured ? measured->get<double>() : try_plan();
    if (!measured) trial_phase.finish(loss);
    report.push_back({{"base", base}, {"held_out_loss", loss}, {"held_out_perplexity", std::exp(loss)}});
    log(LogLevel::kInfo, "base " + format_percent(base) + ": held-out perplexity " + format_fixed(std::exp(loss), 3));
    if (loss < best_loss) {
      best_loss = loss;
      best_base = base;
    }
  }
  return best_base;
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
  const AverageSearch search{options.target->share, std::min(kLargestRatio, options.max_ratio.value_or(0.8)),
                             quantity == "params"  ? "parameters"
                             : quantity == "flops" ? "multiply-adds a token"
                                                   : "bytes"};
  return find_average(search, [&](double average) {
    const ModelConfig sliced = sliced_config(checkpoint.config(), plan_at(average));
    return share_removed(quantity, size_change(checkpoint, sliced, output_dtype(options.out_dtype, checkpoint)));
  });
}

void refuse(const std::string& option, const std::string& place) {
  throw_error(ErrorKind::kUsage, option, " belongs to --method ", place);
}

void check_global(const PlanningOptions& options) {
  if (options.allocator != "constant") {
    throw_error(ErrorKind::kUsage, "--allocate ", options.allocator,
                ": with --basis global all layers have one width, which is --allocate constant");
  }
  if (is_paper(options)) refuse("--preset paper", "slice --basis block");
  if (options.modular.refit == "self") refuse("--refit self", "modular");
  if (options.directions == "loss" && options.modular.gradient_samples == 0)
    throw_error(ErrorKind::kUsage, "--directions loss needs gradients: --gradient-samples 1 or more");
}

void check_method(const PlanningOptions& options, const Checkpoint& checkpoint) {
  if (options.method == "modular") {
    if (options.slice_head) refuse("--slice-head", "slice");
    if (is_paper(options)) refuse("--preset paper", "slice");
    if (options.basis != "block") refuse("--basis", "slice");
    if (options.directions != "energy") refuse("--directions", "slice --basis global");
    if (options.modular.refit == "none") refuse("--refit none", "slice --basis global");
    check_modular(checkpoint);
    return;
  }
  if (options.modular.neurons || options.modular.weigh_tokens) refuse("one of --neurons, --weigh-tokens", "modular");
  if (options.basis == "global") {
    check_global(options);
  } else {
    if (options.modular.any())
      refuse("one of --refit, --ridge, --gradient-samples", "modular, or to --method slice --basis global");
    if (options.directions != "energy") refuse("--directions", "slice --basis global");
  }
  if (options.allocator == "loss") refuse("--allocate loss", "modular");
  check_sliceable(checkpoint);
}

// What removing neurons costs, layer by layer, and the plans made of that.
Planned plan_by_losses(const PlanningOptions& options, const Checkpoint& checkpoint, const ComputeOptions& compute,
                       Calibration& calibration, SensitivitySource& sensitivity, Journal* journal,
                       ProgressSink& progress) {
  const ModelConfig& config = checkpoint.config();
  const int64_t inner = config.layers.front().intermediate_size;
  const LayerWalk walk(checkpoint, compute, calibration.text().windows.length, progress);
  const std::vector<LossCurve> curves =
      loss_curves(options, walk, calibration.text().windows, sensitivity, phase(journal, "losses"));
  const auto plan_at = [&](double average) {
    const double total = average * static_cast<double>(inner * config.num_layers());
    std::vector<double> ratios = allocate_by_losses(curves, total);
    for (double& ratio : ratios) ratio /= static_cast<double>(inner);
    return plan_of_ratios(options, config, ratios, average, average);
  };
  Planned planned{plan_at(average_of(options, checkpoint, plan_at)), std::nullopt};
  planned.plan.provenance["losses"] = losses_of(curves, planned.plan);
  return planned;
}

}  // namespace

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
  if (options.allocator == "loss") {
    ModularUse use{amount_of(calibration.text().windows), {}, gradient_text(options, calibration), nullptr, 0};
    return estimate_modular(checkpoint, compute, use);
  }
  if (options.scores.empty()) estimate = estimate_score(checkpoint, compute, amount_of(calibration.text().windows));
  if (options.base_auto) {
    const TokenWindows& windows = calibration.text().windows;
    const auto [trial, held] = trial_windows(options, windows.count);
    const TextAmount sample{trial, windows.length}, held_out{held, windows.length};
    const ResourceEstimate one =
        options.method == "modular"
            ? estimate_modular(checkpoint, compute, {sample, held_out, gradient_text(options, calibration), nullptr, 0})
            : estimate_slice(checkpoint, compute, sample, held_out, nullptr, 0);
    const double average = expected_plan(options, checkpoint).average_ratio;
    for (size_t i = 0; i < base_candidates(average).size(); ++i) estimate = estimate + one;
  }
  return estimate;
}

void check_planning(const PlanningOptions& options, const Checkpoint& checkpoint) {
  if (!options.average && !options.target) {
    throw_error(ErrorKind::kUsage, "say how much to slice: --avg 25%, or --target params=25%");
  }
  check_method(options, checkpoint);
  if (options.allocator != "lr") {
    if (options.base || options.base_auto)
      throw_error(ErrorKind::kUsage, "--base belongs to --allocate lr, not to ", options.allocator);
    return;
  }
  if (!options.average) return;
  check_options(
      allocate_options(options, *options.average, options.base.value_or(kDefaultBaseShare * *options.average)));
}

void check_against_plan(const PlanningOptions& options, const SlicePlan& plan, const Checkpoint& checkpoint) {
  PlanningOptions as_planned = options;
  as_planned.method = plan.method;
  as_planned.basis = plan.is_modular() ? "block" : plan.basis;
  as_planned.allocator = "constant";
  check_method(as_planned, checkpoint);
}

bool must_walk(const PlanningOptions& options) {
  if (options.allocator == "loss") return true;
  return options.allocator != "constant" && (options.scores.empty() || options.base_auto);
}

Planned make_plan(const PlanningOptions& options, const Checkpoint& checkpoint, const ComputeOptions& compute,
                  Calibration& calibration, SensitivitySource& sensitivity, Journal* journal, ProgressSink& progress) {
  check_planning(options, checkpoint);
  if (options.allocator == "loss")
    return plan_by_losses(options, checkpoint, compute, calibration, sensitivity, journal, progress);
  const ModelConfig& config = checkpoint.config();
  if (options.allocator == "constant") {
    const auto plan_at = [&](double average) {
      const auto ratios = allocate_constant(config.layers.size(), allocate_options(options, average, average));
      return plan_of_ratios(options, config, ratios, average, average);
    };
    return {plan_at(average_of(options, checkpoint, plan_at)), std::nullopt};
  }
  if (options.base_auto && calibration.text().windows.count < 2) {
    throw_error(ErrorKind::kUsage, "--base auto needs at least 2 calibration windows: --samples 2 or more");
  }
  const LayerScores scores = obtain_scores(options, checkpoint, compute, calibration, journal, progress);
  const auto redundancy =
      redundancies(scores, options.scores.empty() ? "the scores" : options.scores, options.allocator, config);
  const auto plan_with = [&](double average, double base) {
    const AllocateOptions allocate = allocate_options(options, average, base);
    const auto ratios = options.allocator == "softmax" ? allocate_by_influence(redundancy, options.epsilon, allocate)
                                                       : allocate_by_redundancy(redundancy, allocate);
    return plan_of_ratios(options, config, ratios, average, base);
  };
  const auto plan_at = [&](double average) {
    return plan_with(average, options.base ? std::min(*options.base, average) : kDefaultBaseShare * average);
  };
  const double average = average_of(options, checkpoint, plan_at);
  if (!options.base_auto) return {plan_at(average), scores};
  OrderedJson sweep;
  const double base =
      sweep_base(options, checkpoint, compute, redundancy, average, calibration, sensitivity, journal, progress, sweep);
  // What a base costs in size is little, but a target is a target.
  const auto plan_with_share = [&](double other) { return plan_with(other, average > 0 ? base / average * other : 0); };
  Planned planned{
      options.average ? plan_with(average, base) : plan_with_share(average_of(options, checkpoint, plan_with_share)),
      scores};
  planned.plan.provenance["base_sweep"] = sweep;
  return planned;
}

void print_plan(const SlicePlan& plan, const std::optional<LayerScores>& scores, const SizeChange& change) {
  std::vector<std::vector<std::string>> rows;
  for (size_t i = 0; i < plan.dims.size(); ++i) {
    rows.push_back({std::to_string(i), scores ? format_fixed(scores->values[i], 4) : "-",
                    format_percent(plan.ratios[i]), std::to_string(plan.dims[i]), bar(plan.ratios[i], 30)});
  }
  const bool modular = plan.is_modular();
  print_table(
      {"layer", scores ? scores->metric : "score", modular ? "removed" : "sliced", modular ? "MLP size" : "width", ""},
      rows);

  const double mean_width = static_cast<double>(std::accumulate(plan.dims.begin(), plan.dims.end(), int64_t{0})) /
                            static_cast<double>(plan.dims.size());
  std::cout << '\n';
  print_sizes(change, {modular ? "MLP size (mean)" : "width (mean)", std::to_string(plan.whole()),
                       format_fixed(mean_width, 1), format_change(static_cast<double>(plan.whole()), mean_width)});
  std::cout << "\nAsked: " << format_percent(plan.average_ratio) << " of the " << (modular ? "MLPs' neurons" : "width")
            << " on average (" << plan.allocator;
  if (plan.allocator == "lr") std::cout << ", base " << format_percent(plan.base);
  std::cout << ").\n";
  print_size_notice(change);
  if (change.after.parameters > change.before.parameters) {
    std::cout
        << "The sliced model has more parameters than the source: the matrices on the residual paths outweigh what "
           "was cut.\n";
  }
}

}  // namespace dynslice::cli
