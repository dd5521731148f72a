// One basis for the whole model: every stream is rotated by the same matrix and cut to the same width, so that nothing
// is needed on the residual paths and what comes out is an ordinary model of a smaller hidden size.
#pragma once

#include "dynslice/plan/choices.h"
#include "dynslice/slice/slice.h"
#include "dynslice/train/sensitivity.h"

namespace dynslice {

struct GlobalOptions {
  DirectionChoice directions = DirectionChoice::kEnergy;
  RotationRefitOptions refit{.refit = RotationRefit::kAll};
};

// Throws kUsage for a model whose norms forbid one narrower stream.
void check_narrower(const Checkpoint& checkpoint);

// Slices the dense model of `walk` to the plan's one width D. docs/design/rotation.md derives basis, norms and tied
// head.
//
// 1. The basis [d, D] holds the first eigenvectors of the normed streams' second moment at all 2 L + 1 places before
//    attention, MLPs and head, weighed as `options.directions` says by the gradients of `sensitivity`.
// 2. Norms keep constant weights, and a tied head stays tied; without cutting, the logits are those of the dense model.
// 3. Refits are as in slice_model; the head reads too. So are memory, the tensors' order, and what is thrown.
// 4. `journal` keeps sums, basis and streams between layers.
void slice_globally(const LayerWalk& walk, const SlicePlan& plan, const TokenWindows& calibration,
                    SensitivitySource& sensitivity, const GlobalOptions& options, const TensorSink& sink,
                    const JournalPhase& journal = {});

}  // namespace dynslice
