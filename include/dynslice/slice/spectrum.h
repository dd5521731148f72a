// How the energy of every layer's streams is spread over their principal directions: what slicing would lose, layer by
// layer.
#pragma once

#include <cstdint>
#include <vector>

#include "dynslice/plan/budget.h"
#include "dynslice/train/sensitivity.h"
#include "dynslice/walk/journal.h"
#include "dynslice/walk/layer_walk.h"

namespace dynslice {

// Curves over the number of directions that are cut away, least energy first, at both of a layer's places (the stream
// that enters it and the one inside it), down to `least` directions, on the dense model's streams.
//
// With `importance` (one a layer): the share of the energies Σ λ of both streams that is lost, times that. Without:
// with what the loss says of the directions (one pass back through the model): Σ λ_j v_jᵀ G v_j ‖g‖² / 2, in nats a
// token. Throws kBadInput for NaN or Inf in a stream.
[[nodiscard]] std::vector<LossCurve> measure_spectra(const LayerWalk& walk, const TokenWindows& calibration,
                                                     const std::vector<double>& importance,
                                                     SensitivitySource& sensitivity, int64_t least,
                                                     const JournalPhase& journal = {});

}  // namespace dynslice
