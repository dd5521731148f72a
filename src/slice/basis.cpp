#include "slice/basis.h"

#include <algorithm>

#include "aten.h"

namespace dynslice {
namespace {

// Below this sine two directions are taken as equal: the cosine is 1 to the last bit of fp64.
constexpr double kNoAngle = 1e-12;

// The first `in` coordinates turned towards the other subspace in the planes of the principal angles:
// [I; 0] + change innerᵀ.
struct DirectRotation {
  at::Tensor change;  // [d, pairs]
  at::Tensor inner;   // [in, pairs]: orthonormal where there is an angle
};

// q, r [d, pairs]: principal directions of the two dropped subspaces; gamma: the cosines between them.
DirectRotation rotate_directly(int64_t in, const at::Tensor& q, const at::Tensor& r, const at::Tensor& gamma) {
  const at::Tensor across = r - q * gamma;  // what r has beyond its shadow on q lies in the kept coordinates
  const at::Tensor sine = at::linalg_vector_norm(across, 2, {0});
  const at::Tensor none = at::zeros({}, sine.options());
  const at::Tensor turned = sine.gt(kNoAngle);
  const at::Tensor p = at::where(turned, across / sine.clamp_min(kNoAngle), none);
  const at::Tensor cosine_loss =
      at::where(turned, sine.square() / (1 + gamma), none);  // 1 - gamma, without cancellation
  return {-(p * cosine_loss) - q * at::where(turned, sine, none), p.narrow(0, 0, in)};
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
  // Column by column on the CPU, whatever the device: each waits for the one before, and is little work.
  const at::Tensor gram = at::matmul(y.t(), y).cpu(), factors = tau.cpu();
  at::Tensor t = at::zeros({count, count}, gram.options());
  for (int64_t j = 0; j < count; ++j) {
    t.select(1, j).narrow(0, j, 1).copy_(factors.narrow(0, j, 1));
    if (j == 0) continue;
    const at::Tensor above = at::mv(t.narrow(0, 0, j).narrow(1, 0, j), gram.select(1, j).narrow(0, 0, j));
    t.select(1, j).narrow(0, 0, j).copy_(-factors[j] * above);
  }
  return {y.flip({0}), t.to(y.device())};
}

// The stream keeps `out` >= in directions: those turned, and some that were dropped before.
void widen(Turn& turn, const DirectRotation& rotation, const at::Tensor& added, int64_t in) {
  const int64_t d = added.size(0), more = added.size(1);
  const at::Tensor passed = at::eye(d, added.options()).narrow(1, in, more);  // what `fit` alone would take for them
  turn.down = at::cat({rotation.change, added - passed}, 1).t().contiguous();
  turn.up = at::block_diag({rotation.inner, at::eye(more, added.options())});
}

// The stream keeps out < in directions: `lost` [in, in - out] are dropped now.
void narrow_down(Turn& turn, const DirectRotation& rotation, const at::Tensor& lost, int64_t out) {
  const auto [y, t] = reflect_to_end(lost);
  const at::Tensor reflected = at::matmul(y, t.t());  // H = I - Y Tᵀ Yᵀ; x = first entries of H (I + inner changeᵀ) y
  const int64_t d = rotation.change.size(0);
  const at::Tensor rows = at::constant_pad_nd(y.t(), {0, d - y.size(0)});
  turn.down = at::cat({rows, rotation.change.t()}, 0).contiguous();
  const at::Tensor inner = rotation.inner - at::matmul(reflected, at::matmul(y.t(), rotation.inner));
  turn.up = at::cat({-reflected, inner}, 1).narrow(0, 0, out).contiguous();
}

}  // namespace

Basis principal_directions(SecondMoment& moment, int64_t keep, const std::string& where) {
  at::Tensor regular = moment.take("the residual stream " + where);
  regular.diagonal().add_(0.01 * regular.diagonal().mean().item<double>());
  // LAPACK gives ascending eigenvalues.
  const at::Tensor vectors = std::get<1>(at::linalg_eigh(regular));
  const int64_t dropped = vectors.size(1) - keep;
  return {vectors.narrow(1, dropped, keep).flip({1}).contiguous(), vectors.narrow(1, 0, dropped).contiguous()};
}

at::Tensor Basis::whole() const { return at::cat({kept, dropped}, 1); }

Basis original_basis(int64_t hidden_size, at::Device device) {
  const auto options = at::TensorOptions().dtype(at::kDouble).device(device);
  return {at::eye(hidden_size, options), at::empty({hidden_size, 0}, options)};
}

Turn turn_to(int64_t in, const Basis& to, ShortcutKind kind) {
  const int64_t d = to.kept.size(0), out = to.kept.size(1);
  if (kind == ShortcutKind::kMatrix) return {to, to.kept.t().contiguous(), {}, {}};
  if (out == d) return {original_basis(d, to.kept.device()), {}, {}, {}};  // nothing is dropped any more
  const int64_t in_dropped = d - in, out_dropped = d - out, pairs = std::min(in_dropped, out_dropped);
  const auto [left, cosines, right] = at::linalg_svd(to.dropped.narrow(0, in, in_dropped), /*full_matrices=*/true);
  const at::Tensor q = at::constant_pad_nd(left, {0, 0, in, 0}), r = at::matmul(to.dropped, right.t());
  const DirectRotation rotation =
      rotate_directly(in, q.narrow(1, 0, pairs), r.narrow(1, 0, pairs), cosines.clamp(0, 1));
  Turn turn;
  if (out >= in) {
    widen(turn, rotation, q.narrow(1, pairs, in_dropped - pairs), in);
  } else {
    narrow_down(turn, rotation, r.narrow(1, pairs, out_dropped - pairs).narrow(0, 0, in), out);
  }
  turn.basis = {at::addmm(at::eye(d, to.kept.options()).narrow(1, 0, out), turn.down.t(), turn.up.t()), to.dropped};
  return turn;
}

ShortcutTensors residual_path(const Turn& turn, int64_t in, ShortcutKind kind) {
  if (kind == ShortcutKind::kMatrix) return {turn.weight.narrow(1, 0, in), {}, {}};
  if (!turn.down.defined() || kind == ShortcutKind::kIdentity) return {};
  const at::Tensor down = turn.down.narrow(1, 0, in);
  if (kind == ShortcutKind::kLowRank) return {{}, down, turn.up};
  // Of a direct rotation up down = -inner (1 - cosine) innerᵀ; the rows of directions that are new see nothing of x.
  const int64_t rank = turn.basis.dropped.size(1);
  const at::Tensor inner = turn.up.narrow(0, 0, in).narrow(1, 0, rank);
  const at::Tensor cosine_loss = -(inner * down.narrow(0, 0, rank).t()).sum(0);
  return {{}, (inner * cosine_loss.clamp_min(0).sqrt()).t().contiguous(), {}};
}

}  // namespace dynslice
