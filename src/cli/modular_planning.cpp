#include "cli/modular_planning.h"

#include <algorithm>
#include <cmath>

#include "dynslice/allocate/allocate.h"

namespace dynslice::cli {
namespace {

int64_t gradient_samples(const PlanningOptions& options) { return options.modular.gradient_samples.value_or(8); }

}  // namespace

ModularOptions modular_options(const ModularCliOptions& given) {
  ModularOptions options;
  if (given.refit) {
    options.towards_dense = *given.refit != "self";
    options.refit_attention = *given.refit == "all";
  }
  if (given.neurons) options.choice = *given.neurons == "loss" ? NeuronChoice::kLoss : NeuronChoice::kLeverage;
  if (given.weigh_tokens) options.by_norm = *given.weigh_tokens == "norm";
  if (given.ridge) options.ridge = *given.ridge;
  return options;
}

TextAmount gradient_text(const PlanningOptions& options, Calibration& calibration) {
  const TokenWindows& windows = calibration.text().windows;
  return {std::min(windows.count, gradient_samples(options)), windows.length};
}

SensitivitySource sensitivity_source(const PlanningOptions& options, const Checkpoint& checkpoint,
                                     const ComputeOptions& compute, Calibration& calibration, Journal* journal,
                                     ProgressSink& progress) {
  const bool needs = modular_options(options.modular).choice == NeuronChoice::kLoss || options.allocator == "loss";
  if (gradient_samples(options) == 0 || !needs) return {};
  return SensitivitySource([&options, &checkpoint, compute, &calibration, journal, &progress] {
    const TokenWindows& all = calibration.text().windows;
    const TokenWindows windows = all.part(0, std::min(all.count, gradient_samples(options)));
    const LayerWalk walk(checkpoint, compute, windows.length, progress);
    return measure_sensitivity(walk, windows, default_turn_bytes(checkpoint, compute.device),
                               phase(journal, "gradients"));
  });
}

std::vector<LossCurve> loss_curves(const PlanningOptions& options, const LayerWalk& walk, const TokenWindows& windows,
                                   SensitivitySource& sensitivity, const JournalPhase& journal) {
  std::vector<LossCurve> curves;
  if (const auto kept = journal.result()) {
    for (const OrderedJson& curve : *kept) curves.push_back({curve.get<std::vector<double>>()});
    return curves;
  }
  const double most = std::min(options.max_ratio.value_or(AllocateOptions().max_ratio), kLargestRatio);
  const auto inner = static_cast<double>(walk.config().layers.front().intermediate_size);
  const int64_t least = std::max<int64_t>(1, static_cast<int64_t>(std::floor((1 - most) * inner)));
  curves = measure_loss_curves(walk, windows, sensitivity, modular_options(options.modular), least, journal);
  OrderedJson result = OrderedJson::array();
  for (const LossCurve& curve : curves) result.push_back(curve.losses);
  journal.finish(result);
  return curves;
}

OrderedJson losses_of(const std::vector<LossCurve>& curves, const SlicePlan& plan) {
  OrderedJson losses = OrderedJson::array();
  for (size_t i = 0; i < curves.size(); ++i) {
    const auto gone = std::min(plan.intermediate_size - plan.dims[i], curves[i].largest());
    losses.push_back(curves[i].losses[static_cast<size_t>(gone)]);
  }
  return losses;
}

}  // namespace dynslice::cli
