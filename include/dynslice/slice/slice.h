// Rotation and slicing (SliceGPT, arXiv 2401.15024, section 3): every stream is rotated into its principal
// components on calibration text, and the least of them are cut away, layer by layer.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <optional>
#include <string>

#include "dynslice/plan/slice_plan.h"
#include "dynslice/walk/journal.h"
#include "dynslice/walk/layer_walk.h"

namespace dynslice {

// Receives the finished tensors of the sliced model, in the order of the checkpoint.
struct TensorSink {
  std::function<void(const std::string& name, const at::Tensor& values)> write;  // empty: the slicing only measures
  // Rows [begin, begin + rows.size(0)) of the largest matrices, embedding and head, in order and without a gap.
  std::function<void(const std::string& name, int64_t begin, const at::Tensor& rows)> write_rows;
};

enum class RotationRefit {
  kNone,     // matrices are rotated and cut
  kWriters,  // what attention and MLPs add to the stream is refitted as well
  kAll,      // and what is read of the stream: by them and, with one basis for the whole model, by the head
};

struct RotationRefitOptions {
  RotationRefit refit = RotationRefit::kNone;
  double error_share = 0.5;  // of the stream's error so far that a writer's refit makes up for
  double ridge = 1e-4;       // pull of a refit towards what rotation alone gives, in units of the mean diagonal
  [[nodiscard]] bool is_any() const { return refit != RotationRefit::kNone; }
};

struct SliceResult {
  // Mean negative log-likelihood (nats a token) of the sliced model on the held-out windows, when there are any.
  std::optional<double> held_out_loss;
};

// Throws kUsage for a model that is sliced already.
void check_sliceable(const Checkpoint& checkpoint);

// Slices the dense model of `walk` by `plan` with PCA on `calibration`. docs/design/rotation.md has the derivation,
// docs/design/refits.md that of the refits.
//
// 1. One forward for each half layer. The weights go to `sink` as soon as they are final; `held_out` is walked through
//    the sliced layers beside the calibration text.
// 2. Second moments and eigenvectors are fp64, with a ridge of 1 % of the mean diagonal; weights are rotated in fp32,
//    whatever the dtype of the forward.
// 3. Refits walk the dense model's stream beside that of the sliced one. Bases are those of the refitted model's
// streams.
// 4. `journal` keeps basis and streams between layers; the tensors of the layers before are then not handed over again.
//
// Throws kUsage for a model that is not dense, kBadInput when the plan does not fit or the stream holds NaN.
SliceResult slice_model(const LayerWalk& walk, const SlicePlan& plan, const TokenWindows& calibration,
                        const TensorSink& sink, const TokenWindows* held_out = nullptr,
                        const JournalPhase& journal = {}, const RotationRefitOptions& refit = {});

}  // namespace dynslice
