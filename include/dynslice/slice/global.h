// One basis for the whole model: every stream is rotated by the same matrix and cut to the same width, so that nothing
// is needed on the residual paths and what comes out is an ordinary model of a smaller hidden size.
#pragma once

#include "dynslice/modular/sensitivity.h"
#include "dynslice/slice/slice.h"

namespace dynslice {

enum class DirectionChoice {
  kEnergy,  // the principal components of the normalized streams
  kLoss,    // those that carry energy and matter to the loss
};

enum class RotationRefit {
  kNone,     // matrices are rotated and cut
  kWriters,  // what attention and MLPs add to the stream is refitted as well
  kAll,      // and what they, and the head, make of the stream they read
};

struct GlobalOptions {
  DirectionChoice directions = DirectionChoice::kEnergy;
  RotationRefit refit = RotationRefit::kAll;
  double error_share = 0.5;  // of the stream's error so far that a writer's refit makes up for
  double ridge = 1e-4;       // pull of a refit towards what rotation alone gives, in units of the mean diagonal
};

// Slices the dense model of `walk` to the plan's one width D. With n(x) the RMS-normalized stream x [d] at the 2 L + 1
// places before attention, MLPs and head, the basis Q [d, D] holds the first eigenvectors of Σ n(x) n(x)ᵀ over all
// tokens and places; with kLoss of exp(log C + log G / 2), C being that sum and G that of the gradients' second
// moments of `sensitivity`. The streams become Qᵀ x. Norm weights go into the matrices behind
// them; in their place come constant ones, sqrt(d / D), which with an eps of eps d / D make up for norms that divide by
// D instead of d. A tied head reads W n(x), W the final norm's diagonal weights: Q is turned within its span so that Qᵀ
// W Q is diagonal too, and that becomes the weights of the final norm. A refit walks the sliced model's stream y beside
// the dense one: readers are refitted from n(y) to n(x), writers to half of what y lacks of Qᵀ x; least squares on fp64
// sums. Memory and the tensors' order are as in slice_model. Throws as that does. `journal` keeps sums, basis and
// streams between layers.
void slice_globally(const LayerWalk& walk, const SlicePlan& plan, const TokenWindows& calibration,
                    SensitivitySource& sensitivity, const GlobalOptions& options, const TensorSink& sink,
                    const JournalPhase& journal = {});

}  // namespace dynslice
