// The orthonormal bases that the streams of a sliced model live in, and how one is chosen so that the residual path
// to it is cheap.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "dynslice/model/config.h"

namespace dynslice {

// The kept and the dropped directions of a stream; together an orthonormal basis of the original space. fp64.
struct Basis {
  at::Tensor kept;     // [d, D]
  at::Tensor dropped;  // [d, d - D]
};

// A basis and the residual path that leads to it, x [in] → x [out].
struct Turn {
  Basis basis;
  at::Tensor weight;    // of ShortcutKind::kMatrix: [out, in] fp64
  at::Tensor down, up;  // of the low-rank kinds, as ShortcutKind has them; `up` undefined for kSymmetric
};

// A sliced model's logits depend on the subspace that a stream is cut to, not on the basis chosen within it (its norms
// are weightless, and every linear is rotated to match). Among the bases of span(to.kept) this takes the one that is
// turned least against `from` (the direct rotation of Davis and Kahan): its residual path differs from the identity
// in d - max(in, out) directions only, or d - out when the stream becomes narrower. `kind` is what the configuration
// announces for this path; kMatrix leaves `to` as it is.
Turn turn_to(const Basis& from, const Basis& to, ShortcutKind kind);

// All directions kept, in the original coordinates.
Basis original_basis(int64_t hidden_size, at::Device device);

}  // namespace dynslice
