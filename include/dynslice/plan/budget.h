// One budget for all layers: each gives up what costs the loss least, until as much is gone as asked.
#pragma once

#include <vector>

#include "dynslice/support/json.h"

namespace dynslice {

// What making one part of the model smaller costs: losses[i], rising from losses[0] = 0, when sizes[i] of its weights
// are gone, rising from sizes[0] = 0.
struct LossCurve {
  std::vector<double> sizes;
  std::vector<double> losses;
  bool divisible = true;  // what lies between two points can be had too; else one of the points only
};

// For a journal.
[[nodiscard]] OrderedJson to_json(const LossCurve& curve);
[[nodiscard]] LossCurve loss_curve_of(const OrderedJson& json);

// How much every part gives up, `total` together (a little less where parts are not divisible), at the least sum of
// losses: all pay the same for the last weight, where their curves are convex (and the curves' lower convex hulls
// elsewhere). Throws kUsage when they cannot give up as much.
[[nodiscard]] std::vector<double> allocate_by_losses(const std::vector<LossCurve>& curves, double total);

}  // namespace dynslice
