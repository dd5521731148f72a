#include "jobs/modular_planning.h"

#include <algorithm>
#include <cstdint>

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

namespace {

// Steps of the layers' curves of heads, one a layer, at which all have `heads` heads, and those that began with as many
// key-value heads end with as many; of several such, the ones that cost least. Empty: there are none.
std::vector<size_t> steps_alike(const std::vector<LayerCurves>& curves, int64_t heads) {
  std::vector<size_t> steps(curves.size());
  std::vector<bool> placed(curves.size());
  for (size_t first = 0; first < curves.size(); ++first) {
    if (placed[first]) continue;
    std::vector<size_t> best;
    double least = 0;
    for (const HeadCount& count : curves[first].counts) {
      if (count.heads != heads) continue;
      std::vector<size_t> found;
      double loss = 0;
      bool all = true;
      for (size_t i = first; i < curves.size() && all; ++i) {
        if (curves[i].counts.front() != curves[first].counts.front()) continue;
        const auto step = std::ranges::find(curves[i].counts, count);
        all = step != curves[i].counts.end();
        if (!all) continue;
        found.push_back(static_cast<size_t>(step - curves[i].counts.begin()));
        loss += curves[i].heads.losses[found.back()];
      }
      if (!all || (!best.empty() && loss >= least)) continue;
      best = found;
      least = loss;
    }
    if (best.empty()) return {};
    size_t next = 0;
    for (size_t i = first; i < curves.size(); ++i) {
      if (curves[i].counts.front() != curves[first].counts.front()) continue;
      steps[i] = best[next++];
      placed[i] = true;
    }
  }
  return steps;
}

// Between its points.
double loss_at(const LossCurve& curve, double step) {
  const auto below = static_cast<size_t>(step);
  if (below + 1 >= curve.losses.size()) return curve.losses.back();
  return curve.losses[below] + (step - static_cast<double>(below)) * (curve.losses[below + 1] - curve.losses[below]);
}

// What layers of equal shapes can be: their heads, at these steps of their curves, give up so many weights.
struct HeadsAlike {
  std::vector<size_t> steps;
  double gone = 0, loss = 0;
};

std::vector<HeadsAlike> choices_alike(const std::vector<LayerCurves>& curves) {
  std::vector<HeadsAlike> found;
  for (const HeadCount& count : curves.front().counts) {
    HeadsAlike one{steps_alike(curves, count.heads)};
    if (count.heads == 0 || one.steps.empty()) continue;
    for (size_t i = 0; i < curves.size(); ++i) {
      one.gone += curves[i].heads.sizes[one.steps[i]];
      one.loss += curves[i].heads.losses[one.steps[i]];
    }
    found.push_back(std::move(one));
  }
  return found;
}

// Weights of a neuron of every layer, of all that may go, and how many neurons all layers can lose.
struct WeightsAlike {
  double a_neuron = 0, total = 0, most_neurons = 0;
};

WeightsAlike weights_alike(const std::vector<LayerCurves>& curves, const ModelConfig& config) {
  WeightsAlike weights;
  size_t most = SIZE_MAX;
  for (const LayerCurves& layer : curves) {
    weights.a_neuron += layer.neurons.sizes.at(1);
    weights.total += layer.heads.sizes.back();
    most = std::min(most, layer.neurons.losses.size() - 1);
  }
  weights.total += weights.a_neuron * static_cast<double>(config.layers.front().intermediate_size);
  weights.most_neurons = static_cast<double>(most);
  return weights;
}

}  // namespace

double most_alike(const std::vector<LayerCurves>& curves, const ModelConfig& config) {
  const WeightsAlike weights = weights_alike(curves, config);
  double most = 0;
  for (const HeadsAlike& heads : choices_alike(curves))
    most = std::max(most, heads.gone + weights.most_neurons * weights.a_neuron);
  return most / weights.total;
}

GivenUp give_up_alike(const std::vector<LayerCurves>& curves, const ModelConfig& config, double average) {
  const WeightsAlike weights = weights_alike(curves, config);
  const double asked = std::min(average, most_alike(curves, config)) * weights.total;
  GivenUp best;
  double least = 0;
  for (const HeadsAlike& heads : choices_alike(curves)) {
    const double neurons = std::max(0.0, (asked - heads.gone) / weights.a_neuron);
    if (neurons > weights.most_neurons * (1 + 1e-9)) continue;
    if (heads.gone > asked && !best.ratios.empty()) continue;  // the first such, where neurons alone do not do
    double loss = heads.loss;
    for (const LayerCurves& layer : curves) loss += loss_at(layer.neurons, neurons);
    if (!best.ratios.empty() && loss >= least) continue;
    least = loss;
    const auto inner = static_cast<double>(config.layers.front().intermediate_size);
    best = {std::vector<double>(curves.size(), neurons / inner), {}};
    if (curves.front().counts.size() == 1) continue;
    for (size_t i = 0; i < curves.size(); ++i) best.heads.push_back(curves[i].counts[heads.steps[i]]);
  }
  return best;
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
