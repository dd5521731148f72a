// Which layers can go: those that change the stream least (ShortGPT, arXiv 2403.03853), or those without which the
// loss rises least, one after the other (SLEB, arXiv 2402.09025).
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "dynslice/plan/layer_scores.h"
#include "dynslice/walk/journal.h"
#include "dynslice/walk/layer_walk.h"

namespace dynslice {

// The `count` least important layers by their scores (see by_importance), in ascending order of their numbers.
[[nodiscard]] std::vector<int64_t> least_important(const LayerScores& scores, int64_t count);

struct DropTrial {
  int64_t layer = 0;
  double loss = 0;  // nats a token, without this layer and all that went before it
};

// Drops `count` layers, each time the one without which the loss on `windows` is least, and measures all others again.
// `phase` gives the journal of a round. Returns the layers in the order in which they went.
[[nodiscard]] std::vector<DropTrial> drop_by_loss(const LayerWalk& walk, const TokenWindows& windows, int64_t count,
                                                  const std::function<JournalPhase(const std::string& name)>& phase);

}  // namespace dynslice
