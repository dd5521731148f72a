#include "jobs/modular_planning.h"

#include <algorithm>

#include "dynslice/walk/memory_plan.h"

namespace dynslice {
namespace {

int64_t gradient_samples(const PlanningRequest& options) {
  const bool to_choose = options.is_modular() && modular_options(options.modular).choice == NeuronChoice::kLoss;
  const bool needs = to_choose || options.allocation().reads_losses || options.directions != DirectionChoice::kEnergy;
  return needs ? options.modular.gradient_samples.value_or(8) : 0;
}

}  // namespace

ModularOptions modular_options(const ModularChoices& given) {
  ModularOptions options;
  if (given.attention) options.heads = *given.attention == AttentionChoice::kHeads;
  if (given.refit == Refit::kSelf) options.refit = ModularRefit::kSelf;
  if (given.refit == Refit::kDense) options.refit = ModularRefit::kDense;
  options.choice = given.neurons.value_or(options.choice);
  if (given.weigh_tokens) options.by_norm = *given.weigh_tokens == TokenWeights::kNorm;
  if (given.error_share) options.error_share = *given.error_share;
  if (given.ridge) options.ridge = *given.ridge;
  return options;
}

TextAmount gradient_text(const PlanningRequest& options, Calibration& calibration) {
  if (gradient_samples(options) == 0) return {};
  const TokenWindows& windows = calibration.text().windows;
  return {std::min(windows.count, gradient_samples(options)), windows.length};
}

SensitivitySource sensitivity_source(const PlanningRequest& options, const Checkpoint& checkpoint,
                                     const ComputeOptions& compute, Calibration& calibration, Journal* journal,
                                     ProgressSink& progress) {
  const int64_t count = gradient_text(options, calibration).windows;
  if (count == 0) return {};
  return SensitivitySource(count, [&checkpoint, compute, &calibration, journal, &progress, count] {
    const TokenWindows windows = calibration.text().windows.part(0, count);
    const LayerWalk walk(checkpoint, compute, windows.length, progress);
    return measure_sensitivity(walk, windows, gradient_turn_bytes(checkpoint), phase(journal, "gradients"));
  });
}

GivenUp give_up(const std::vector<LayerCurves>& curves, const ModelConfig& config, double average) {
  std::vector<LossCurve> all;
  for (const LayerCurves& layer : curves) all.push_back(layer.neurons);
  for (const LayerCurves& layer : curves) all.push_back(layer.heads);
  const bool by_heads = std::ranges::any_of(curves, [](const LayerCurves& layer) { return layer.counts.size() > 1; });
  std::vector<double> whole;  // of every MLP
  double total = 0;
  for (size_t i = 0; i < curves.size(); ++i) {
    const auto inner = static_cast<double>(config.layers[i].intermediate_size);
    whole.push_back(inner * curves[i].neurons.sizes.at(1));
    total += whole.back() + curves[i].heads.sizes.back();
  }
  const std::vector<double> given = allocate_by_losses(all, average * total);
  GivenUp result;
  for (size_t i = 0; i < curves.size(); ++i) {
    result.ratios.push_back(given[i] / whole[i]);
    if (!by_heads) continue;
    const std::vector<double>& sizes = curves[i].heads.sizes;
    const auto step = std::ranges::find_if(sizes, [&](double size) { return size > given[curves.size() + i] - 0.5; });
    result.heads.push_back(curves[i].counts[static_cast<size_t>(step - sizes.begin())]);
  }
  return result;
}

OrderedJson losses_of(const std::vector<LayerCurves>& curves, const SlicePlan& plan) {
  OrderedJson losses = OrderedJson::array();
  for (size_t i = 0; i < curves.size(); ++i) {
    const std::vector<double>& of_neurons = curves[i].neurons.losses;
    const auto gone = std::min(plan.intermediate_size - plan.dims[i], static_cast<int64_t>(of_neurons.size()) - 1);
    double loss = of_neurons[static_cast<size_t>(gone)];
    if (!plan.heads.empty()) {
      const auto step = std::ranges::find(curves[i].counts, plan.heads[i]);
      loss += curves[i].heads.losses[static_cast<size_t>(step - curves[i].counts.begin())];
    }
    losses.push_back(loss);
  }
  return losses;
}

}  // namespace dynslice
