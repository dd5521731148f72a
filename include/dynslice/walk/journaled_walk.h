// A walk over all layers that goes on, in another process perhaps, from where its journal last kept it.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "dynslice/walk/journal.h"
#include "dynslice/walk/layer_walk.h"

namespace dynslice {

struct JournaledWalk {
  std::string task;                            // for the progress bar
  int64_t tokens = 0;                          // of all streams that `visit` transforms
  std::function<WalkState()> state;            // all that is remembered between two layers
  std::function<void()> begin;                 // makes what enters layer 0; not called when the journal has kept more
  std::function<void(LayerStep&)> visit;       // of every layer, in order
  std::optional<at::ScalarType> weights = {};  // dtype of the linears, as LayerWalk::run takes it
};

// Restores the state or begins, then visits the layers that are left; the journal is offered the state after each.
void run_journaled(const LayerWalk& walk, const JournalPhase& journal, const JournaledWalk& what);

}  // namespace dynslice
