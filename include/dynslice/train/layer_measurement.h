// What is measured of every layer in one walk over the dense model, and kept by a journal.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "dynslice/train/sensitivity.h"
#include "dynslice/walk/journal.h"
#include "dynslice/walk/layer_walk.h"

namespace dynslice {

// Takes the stream through the layer, and says what it found.
using MeasureLayer = std::function<OrderedJson(LayerStep& step, ResidualStream& stream)>;

// One value a layer. `sensitivity` (null: not needed) is measured first; a journal that has the results gives them back
// without a walk, and one that was stopped goes on at its layer.
[[nodiscard]] std::vector<OrderedJson> measure_layers(const LayerWalk& walk, const std::string& title,
                                                      const TokenWindows& calibration, SensitivitySource* sensitivity,
                                                      const JournalPhase& journal, const MeasureLayer& measure);

}  // namespace dynslice
