#include "dynslice/train/layer_measurement.h"

#include "dynslice/walk/journaled_walk.h"

namespace dynslice {

std::vector<OrderedJson> measure_layers(const LayerWalk& walk, const std::string& title,
                                        const TokenWindows& calibration, SensitivitySource* sensitivity,
                                        const JournalPhase& journal, const MeasureLayer& measure) {
  OrderedJson found = OrderedJson::array();
  if (const auto kept = journal.result()) return {kept->begin(), kept->end()};
  ResidualStream stream = walk.empty_stream();
  WalkState state;
  state.keep("stream", stream);
  state.keep("layers", found);
  if (sensitivity != nullptr) sensitivity->join(state);
  const auto begin = [&] {
    if (sensitivity != nullptr) sensitivity->measure_unless_there();
    stream = walk.embed(calibration);
  };
  run_journaled(walk, journal,
                {.task = title,
                 .tokens = calibration.tokens(),
                 .state = [&] { return state; },
                 .begin = begin,
                 .visit = [&](LayerStep& step) { found.push_back(measure(step, stream)); }});
  journal.finish(found);
  return {found.begin(), found.end()};
}

}  // namespace dynslice
