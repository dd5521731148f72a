// The losses of many shallower models in one walk: each follows the dense model to its first cut and goes its own way
// from there, so that every layer is read once for all of them and nothing is computed twice.
#pragma once

#include <vector>

#include "dynslice/depth/depth_plan.h"
#include "dynslice/support/token_windows.h"
#include "dynslice/walk/journal.h"
#include "dynslice/walk/layer_walk.h"

namespace dynslice {

// Mean negative log-likelihood (nats a token) on `windows` of the models that `plans` make; plans that merge are none
// for this. Needs one residual stream a plan. The journal keeps the streams between layers.
[[nodiscard]] std::vector<double> shallow_losses(const LayerWalk& walk, const TokenWindows& windows,
                                                 const std::vector<DepthPlan>& plans, const JournalPhase& journal = {});

}  // namespace dynslice
