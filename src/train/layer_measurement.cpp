#include "dynslice/train/layer_measurement.h"

namespace dynslice {

std::vector<OrderedJson> measure_layers(const LayerWalk& walk, const std::string& title,
                                        const TokenWindows& calibration, SensitivitySource* sensitivity,
                                        const JournalPhase& journal, const MeasureLayer& measure) {
  OrderedJson found = OrderedJson::array();
  if (const auto kept = journal.result()) return {kept->begin(), kept->end()};
  ResidualStream stream = walk.empty_stream();
  WalkState state;
  state.streams.emplace_back("stream", &stream);
  if (sensitivity != nullptr) sensitivity->join(state);
  WalkSpan span;
  if (const auto restored = journal.restore(state, walk.options().device)) {
    span.first_layer = restored->next_layer;
    found = restored->values.at("layers");
  } else {
    if (sensitivity != nullptr) sensitivity->measure_unless_there();
    stream = walk.embed(calibration);
  }
  span.after_layer = [&](int64_t next) {
    state.values["layers"] = found;
    journal.save(next, walk.config().num_layers(), state);
  };
  walk.run(
      title, stream.tokens(), [&](LayerStep& step) { found.push_back(measure(step, stream)); }, std::nullopt, span);
  journal.finish(found);
  return {found.begin(), found.end()};
}

}  // namespace dynslice
