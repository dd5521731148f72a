#include "slice/basis.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace dynslice {
namespace {

// Below this sine two directions are taken as equal: the cosine is 1 to the last bit of fp64.
constexpr double kNoAngle = 1e-12;

// Q turned towards the other subspace in the planes of the principal angles.
struct DirectRotation {
  at::Tensor turned;  // U Q [d, in]
  at::Tensor factor;  // V [in, pairs]: Qᵀ U Q = I - V Vᵀ
};

// `pairs` principal pairs of the dropped subspaces: directions y of from.dropped and z of to.dropped, cosines gamma.
DirectRotation rotate_directly(const Basis& from, const at::Tensor& q, const at::Tensor& r, const at::Tensor& gamma) {
  const at::Tensor across = r - q * gamma;  // in span(from.kept): what r has beyond its shadow on q
  const at::Tensor sine = at::linalg_vector_norm(across, 2, {0});
  const at::Tensor turned = sine.gt(kNoAngle);
  const at::Tensor p = at::where(turned, across / sine.clamp_min(kNoAngle), at::zeros({}, across.options()));
  const at::Tensor cosine_loss = at::where(turned, sine.square() / (1 + gamma), at::zeros({}, across.options()));
  const at::Tensor inner = at::matmul(from.kept.t(), p);  // [in, pairs]
  const at::Tensor change = p * (-cosine_loss) - q * at::where(turned, sine, at::zeros({}, sine.options()));
  return {from.kept + at::matmul(change, inner.t()), inner * cosine_loss.sqrt()};
}

// I - Y T Yᵀ, the product of the Householder reflections whose transpose takes orthonormal columns to the last
// coordinates (up to signs).
struct Reflections {
  at::Tensor y, t;
};

Reflections reflect_to_end(const at::Tensor& columns) {
  const int64_t count = columns.size(1);
  const auto [packed, tau] = at::geqrf(columns.flip({0}));
  at::Tensor y = at::tril(packed, -1);
  y.diagonal().fill_(1.0);
  const at::Tensor gram = at::matmul(y.t(), y);
  at::Tensor t = at::zeros({count, count}, gram.options());
  for (int64_t j = 0; j < count; ++j) {
    t.select(1, j).narrow(0, j, 1).copy_(tau.narrow(0, j, 1));
    if (j == 0) continue;
    const at::Tensor above = at::mv(t.narrow(0, 0, j).narrow(1, 0, j), gram.select(1, j).narrow(0, 0, j));
    t.select(1, j).narrow(0, 0, j).copy_(-tau[j] * above);
  }
  return {y.flip({0}), t};
}

}  // namespace

Turn turn_to(const Basis& from, const Basis& to, ShortcutKind kind) {
  if (kind == ShortcutKind::kIdentity) return {from, {}, {}, {}};
  if (kind == ShortcutKind::kMatrix) return {to, at::matmul(to.kept.t(), from.kept), {}, {}};
  const int64_t in_dropped = from.dropped.size(1), out_dropped = to.dropped.size(1);
  const int64_t pairs = std::min(in_dropped, out_dropped), out = to.kept.size(1);
  if (pairs == 0 && in_dropped >= out_dropped) {  // nothing is dropped any more
    return {{at::cat({from.kept, from.dropped}, 1), to.dropped}, {}, {}, {}};
  }
  const auto [left, cosines, right] = at::linalg_svd(at::matmul(from.dropped.t(), to.dropped), /*full_matrices=*/true);
  const at::Tensor q = at::matmul(from.dropped, left), r = at::matmul(to.dropped, right.t());
  DirectRotation rotation = rotate_directly(from, q.narrow(1, 0, pairs), r.narrow(1, 0, pairs), cosines.clamp(0, 1));
  if (kind == ShortcutKind::kSymmetric) {
    const at::Tensor added = q.narrow(1, pairs, in_dropped - pairs);  // dropped before, kept from now on
    return {{at::cat({rotation.turned, added}, 1), to.dropped}, {}, rotation.factor.t().contiguous(), {}};
  }
  const at::Tensor lost = at::matmul(from.kept.t(), r.narrow(1, pairs, out_dropped - pairs));  // kept before
  const auto [y, t] = reflect_to_end(lost);
  const at::Tensor kept = rotation.turned - at::matmul(at::matmul(rotation.turned, y), at::matmul(t, y.t()));
  const at::Tensor reflected = at::matmul(y, t.t());  // H = I - Y Tᵀ Yᵀ; out = first entries of H (I - V Vᵀ) x
  const at::Tensor up =
      at::cat({reflected, rotation.factor - at::matmul(reflected, at::matmul(y.t(), rotation.factor))}, 1);
  return {{kept.narrow(1, 0, out).contiguous(), to.dropped},
          {},
          at::cat({y, rotation.factor}, 1).t().contiguous(),
          up.narrow(0, 0, out).neg().contiguous()};
}

Basis original_basis(int64_t hidden_size, at::Device device) {
  const auto options = at::TensorOptions().dtype(at::kDouble).device(device);
  return {at::eye(hidden_size, options), at::empty({hidden_size, 0}, options)};
}

}  // namespace dynslice
