// One budget for all layers: each gives up what costs the loss least, until as much is gone as asked.
#pragma once

#include <cstdint>
#include <vector>

namespace dynslice {

// What making one layer smaller costs: losses[r] when r of its units are gone, from losses[0] = 0 on, rising.
struct LossCurve {
  std::vector<double> losses;
  int64_t largest() const { return static_cast<int64_t>(losses.size()) - 1; }  // number of units that may go
};

// How many units every layer gives up, `total` together, at the least sum of losses: all layers pay the same for the
// last unit, where their curves are convex (and the curves' lower convex hulls elsewhere). Throws kUsage when they
// cannot give up as many.
std::vector<double> allocate_by_losses(const std::vector<LossCurve>& curves, double total);

}  // namespace dynslice
