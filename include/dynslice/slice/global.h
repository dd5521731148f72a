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

// Slices the dense model of `walk` to the plan's one width D. With n(x) the RMS-normalized stream x [d] at the 2 L + 1
// places before attention, MLPs and head, the basis Q [d, D] holds the first eigenvectors of Σ n(x) n(x)ᵀ over all
// tokens and places; with kPlaces every place's part of the sum is weighed by the mean of its
// gradients' squares times the geometric mean of its streams'; with kLoss they are of exp(log C + log G / 2), C being
// that sum and G that of the gradients' second moments of `sensitivity`. The streams become Qᵀ x. Norm weights go into
// the matrices behind them; in their place come constant ones, sqrt(d / D), which with an eps of eps d / D make up for
// norms that divide by D instead of d. A tied head reads W n(x), W the final norm's diagonal weights: Q is turned
// within its span so that Qᵀ W Q is diagonal too, and that becomes the weights of the final norm. Refits are as in
// slice_model; the head reads too. Memory and the tensors' order are as in slice_model. Throws as that does. `journal`
// keeps sums, basis and streams between layers.
void slice_globally(const LayerWalk& walk, const SlicePlan& plan, const TokenWindows& calibration,
                    SensitivitySource& sensitivity, const GlobalOptions& options, const TensorSink& sink,
                    const JournalPhase& journal = {});

}  // namespace dynslice
