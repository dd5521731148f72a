// Training-free repair of a cut: a linear map, fitted on calibration text, that takes what is left in front of removed
// layers towards what came out of them.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "dynslice/depth/depth_plan.h"
#include "dynslice/support/token_windows.h"
#include "dynslice/walk/journal.h"
#include "dynslice/walk/layer_walk.h"

namespace dynslice {

struct RepairOptions {
  bool on_stream = false;  // map the whole stream (LinearPatch, arXiv 2505.24680); else the MLP's output (ReplaceMe)
  double ridge = 1e-3;     // pull towards the identity, in units of the mean diagonal of the second moment
};

// Throws kUsage where no repair can be folded into the layers: for a sliced model, and one whose layers norm what they
// write.
void check_repairable(const Checkpoint& checkpoint);

// For every start s of `starts`, whose `count` layers s ... s + count - 1 would go, the map A that minimizes
// Σ_t w_t ‖y_t + A m_t - x_{s+count,t}‖² + λ ‖A - I‖² (ReplaceMe, arXiv 2505.02819, section 3), m being what the MLP of
// layer s - 1 adds to the stream y; on the stream Σ_t w_t ‖A x_{s,t} - x_{s+count,t}‖² + λ ‖A - I‖². Tokens weigh
// w = 1 / ‖x_{s+count}‖²: without that the few tokens of massive activations would rule the fit. One walk for all
// starts; sums and solution in fp64. Throws kUsage for a sliced model and starts below 1 or without enough layers,
// kBadInput for NaN or Inf in the stream.
[[nodiscard]] std::vector<Repair> fit_repairs(const LayerWalk& walk, const TokenWindows& windows,
                                              const std::vector<int64_t>& starts, int64_t count,
                                              const RepairOptions& options, const JournalPhase& journal = {});

// The plan without layers start ... start + count - 1, and with the repair if there is one.
[[nodiscard]] DepthPlan plan_without_window(int64_t layers, int64_t start, int64_t count,
                                            const std::optional<Repair>& repair);

}  // namespace dynslice
