// Least squares that make up for a part of what rotation and slicing lose, with the dense model's stream beside that of
// the sliced one.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "dynslice/model/forward.h"
#include "dynslice/slice/slice.h"
#include "dynslice/tensor/inner_moment.h"
#include "dynslice/walk/layer_walk.h"

namespace dynslice {

// Takes a stream through the half layer of `layer`, in the dtype of the forward, that passes it on unchanged.
void advance(LayerStep& step, const HalfLayer& half, const DecoderLayer& layer, ResidualStream& stream);

// x behind a norm without weights, whose divisor is the original hidden size [..., width] fp32.
at::Tensor weightless_norm(const LayerWalk& walk, const at::Tensor& x);

// The streams at one place. The sliced model reads way(y) [.., in] of the stored y; the dense stream x is [.., d].
struct StreamPair {
  const ResidualStream& sliced;
  const ResidualStream& dense;
  const Shortcut& way;
  int64_t in;
};

// Of all tokens n(y) [in], and what basis n(y) lacks of n(x) [d]; basis [d, in].
InnerMoment measure_readings(const LayerWalk& walk, const at::Tensor& basis, const StreamPair& streams);

// [d, in] fp64: what matrices that read the stream are multiplied by: `basis`, or with kAll what n(x) ≈ this n(y) by
// least squares.
at::Tensor reading_basis(const LayerWalk& walk, const RotationRefitOptions& options, const at::Tensor& basis,
                         const StreamPair& streams, const std::string& where);

// Changes the matrix of `layer` (fp32, its input matrix being final) that writes to the stream, so that what leaves the
// half layer, residual(x) beside it, makes up for `error_share` of what it lacks of the dense stream behind it in these
// coordinates [d, out]. `streams.dense` is that one already.
void refit_writer(const LayerWalk& walk, const RotationRefitOptions& options, const LayerContext& context,
                  const HalfLayer& half, DecoderLayer& layer, const StreamPair& streams, const Shortcut& residual,
                  const at::Tensor& coordinates, const std::string& where);

}  // namespace dynslice
