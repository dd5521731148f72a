#include "dynslice/depth/drop.h"

#include <algorithm>

#include "dynslice/depth/shallow_losses.h"

namespace dynslice {
namespace {

// One round: the layer without which, and without `dropped`, the loss is least.
DropTrial drop_one(const LayerWalk& walk, const TokenWindows& windows, const std::vector<int64_t>& dropped,
                   const JournalPhase& journal) {
  if (const auto result = journal.result()) {
    return {result->at("layer").get<int64_t>(), result->at("loss").get<double>()};
  }
  std::vector<int64_t> candidates;
  std::vector<DepthPlan> plans;
  const int64_t layers = walk.config().num_layers();
  for (int64_t layer = 0; layer < layers; ++layer) {
    if (std::find(dropped.begin(), dropped.end(), layer) != dropped.end()) continue;
    std::vector<int64_t> without = dropped;
    without.push_back(layer);
    candidates.push_back(layer);
    plans.push_back(plan_without(layers, without));
  }
  const std::vector<double> losses = shallow_losses(walk, windows, plans, journal);
  const auto best = std::min_element(losses.begin(), losses.end());
  const DropTrial trial{candidates[static_cast<size_t>(best - losses.begin())], *best};
  journal.finish({{"layer", trial.layer}, {"loss", trial.loss}});
  return trial;
}

}  // namespace

std::vector<int64_t> least_important(const LayerScores& scores, int64_t count) {
  std::vector<int64_t> order = by_importance(scores);
  order.resize(std::min(order.size(), static_cast<size_t>(count)));
  std::sort(order.begin(), order.end());
  return order;
}

std::vector<DropTrial> drop_by_loss(const LayerWalk& walk, const TokenWindows& windows, int64_t count,
                                    const std::function<JournalPhase(const std::string& name)>& phase) {
  std::vector<DropTrial> trials;
  std::vector<int64_t> dropped;
  while (static_cast<int64_t>(trials.size()) < count) {
    const std::string round = "drop " + std::to_string(trials.size() + 1) + " of " + std::to_string(count);
    trials.push_back(drop_one(walk, windows, dropped, phase(round)));
    dropped.push_back(trials.back().layer);
  }
  return trials;
}

}  // namespace dynslice
