// What a half layer adds to the stream, as a linear map of its inside. Where a norm stands behind the matrix that
// writes, that holds of small changes: what is added is g b / r, with b = W z and r = rms(b), and with r as it is the
// writer is diag(g) W and the inside z / r.
#pragma once

#include <ATen/core/Tensor.h>

#include "dynslice/model/decoder_layer.h"
#include "dynslice/model/forward.h"

namespace dynslice {

// The transpose of what writes, as the stream sees it [inner, out] fp32.
at::Tensor seen_writer(const HalfLayer& half, const DecoderLayer& layer);

// The matrix of the layer [out, k] fp32 whose transpose the stream sees as `rows` [k, out] fp64.
at::Tensor written_by(const HalfLayer& half, const DecoderLayer& layer, const at::Tensor& rows);

// Of a wanted change of those rows [k, out] fp64, as much as is worth its price. Where a norm's weight is small, the
// stream moves a little only when the branch moves much, which turns all of what is normed away from what it was: so
// the least squares have a pull on the branch, of the mean square weight.
at::Tensor attainable(const HalfLayer& half, const DecoderLayer& layer, const at::Tensor& change);

// The inside of the half layer [..., inner], as half_inner gave it, of tokens that the layer is as it is for.
at::Tensor seen_inside(const HalfLayer& half, const DecoderLayer& layer, const LayerContext& context,
                       const at::Tensor& inside);

}  // namespace dynslice
