#include "dynslice/walk/journaled_walk.h"

namespace dynslice {

void run_journaled(const LayerWalk& walk, const JournalPhase& journal, const JournaledWalk& what) {
  const auto kept = journal.restore(what.state(), walk.options().device);
  if (!kept) what.begin();
  const WalkSpan span{kept.value_or(0),
                      [&](int64_t next) { journal.save(next, walk.config().num_layers(), what.state()); }};
  walk.run(what.task, what.tokens, what.visit, what.weights, span);
}

}  // namespace dynslice
