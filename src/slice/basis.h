// The orthonormal bases that the streams of a sliced model live in, and how the next one is chosen so that the way to
// it is cheap.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

#include "dynslice/model/config.h"
#include "dynslice/tensor/second_moment.h"

namespace dynslice {

// The kept and the dropped directions of a stream; together an orthonormal basis of the original space. fp64.
struct Basis {
  at::Tensor kept;           // [d, D]
  at::Tensor dropped;        // [d, d - D]
  at::Tensor whole() const;  // [d, d]: kept, then dropped
};

// All directions kept, in the original coordinates.
Basis original_basis(int64_t hidden_size, at::Device device);

// The first `keep` eigenvectors of a stream's second moment in order of falling eigenvalue, and the others. A ridge of
// 1 % of the mean diagonal is added first, as in the reference. Throws kBadInput when the stream held NaN or Inf;
// `where` names the place in the message: "entering layer 3".
// The moment is used up.
Basis principal_directions(SecondMoment& moment, int64_t keep, const std::string& where);

// The way from a stream y [d], in coordinates whose first `in` are the kept ones, to x [out] in the next basis.
// fp64. x = weight y, or x = (first `out` entries of y) + up down y; with neither, those entries alone.
struct Turn {
  Basis basis;        // the next one, in the coordinates of y
  at::Tensor weight;  // [out, d]
  at::Tensor down;    // [rank, d]
  at::Tensor up;      // [out, rank]
};

// A sliced model's logits depend on the subspace that a stream is cut to, not on the basis chosen within it (its norms
// are weightless, and every linear is rotated to match). Among the bases of span(to.kept) this takes the one that is
// turned least against the first `in` coordinates (the direct rotation of Davis and Kahan, 1970): the way to it differs
// from passing entries on in d - min(in, out) directions at most. `kind` is what the configuration announces for the
// residual path, the way from those `in` coordinates; kMatrix leaves `to` as it is.
Turn turn_to(int64_t in, const Basis& to, ShortcutKind kind);

// The tensors of the residual path x [in] → [out] of a turn, as ShortcutKind has them.
struct ShortcutTensors {
  at::Tensor weight, down, up;
};
ShortcutTensors residual_path(const Turn& turn, int64_t in, ShortcutKind kind);

}  // namespace dynslice
