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
  bool is_any() const { return refit != RotationRefit::kNone; }
};

struct SliceResult {
  // Mean negative log-likelihood (nats a token) of the sliced model on the held-out windows, when there are any.
  std::optional<double> held_out_loss;
};

// Throws kUsage for a model that is sliced already.
void check_sliceable(const Checkpoint& checkpoint);

// Slices the dense model of `walk` by `plan` with PCA on `calibration`. The weights go to `sink` as soon as they
// are final. `held_out` is walked through the sliced layers beside the calibration
// text. One forward for each half layer.
// The streams stay in the original basis between layers; a layer works in its own: x Q_i enters, and leaves
// through shortcut matrices. Second moments and eigenvectors are fp64, with a ridge of 1 % of the mean diagonal;
// weights are rotated in fp32, whatever the dtype of the forward. Throws kUsage for a model that is not dense,
// kBadInput when the plan does not fit or the stream holds NaN.
// A refit walks the dense model's stream x beside that of the sliced one, y: matrices that read it are fitted from n(y)
// to n(x), n being a norm without weights, and those that write to it make up for half of what y lacks of x; least
// squares on fp64 sums, half layer by half layer. Bases are those of the refitted model's streams.
// `journal` keeps basis and streams between layers; the tensors of the layers before are then not handed over again.
SliceResult slice_model(const LayerWalk& walk, const SlicePlan& plan, const TokenWindows& calibration,
                        const TensorSink& sink, const TokenWindows* held_out = nullptr,
                        const JournalPhase& journal = {}, const RotationRefitOptions& refit = {});

}  // namespace dynslice
