#include "slice/basis.h"

#include <gtest/gtest.h>

#include "aten.h"

namespace dynslice {
namespace {

constexpr int64_t kWidth = 40;

// The leading `keep` directions of a random orthonormal basis that is near the identity for a small `turn`.
Basis random_basis(int64_t keep, double turn) {
  const auto options = at::TensorOptions().dtype(at::kDouble);
  const at::Tensor skewed = at::eye(kWidth, options) + turn * at::randn({kWidth, kWidth}, options);
  const at::Tensor all = std::get<0>(at::linalg_qr(skewed));
  return {all.narrow(1, 0, keep).contiguous(), all.narrow(1, keep, kWidth - keep).contiguous()};
}

// The way y [d] → x [out], and the residual path x [in] → [out], as matrices.
at::Tensor way_of(const Turn& turn, int64_t out) {
  if (turn.weight.defined()) return turn.weight;
  const at::Tensor passed = at::eye(out, kWidth, at::kDouble);
  return turn.down.defined() ? passed + at::matmul(turn.up, turn.down) : passed;
}

at::Tensor matrix_of(const ShortcutTensors& path, int64_t in, int64_t out) {
  if (path.weight.defined()) return path.weight;
  const at::Tensor passed = at::eye(out, in, at::kDouble);
  if (!path.down.defined()) return passed;
  if (path.up.defined()) return passed + at::matmul(path.up, path.down);
  return at::matmul(passed, at::eye(in, at::kDouble) - at::matmul(path.down.t(), path.down));
}

double largest(const at::Tensor& x) { return x.abs().max().item<double>(); }

struct Case {
  int64_t in, out;
  ShortcutKind kind;
  double turn;
};

class EveryTurn : public ::testing::TestWithParam<Case> {};

TEST_P(EveryTurn, LeadsToAnOrthonormalBasisOfTheSubspaceByTheExactPath) {
  const auto [in, out, kind, angle] = GetParam();
  at::manual_seed(5);
  const Basis to = random_basis(out, angle);
  const Turn turn = turn_to(in, to, kind);
  const at::Tensor& kept = turn.basis.kept;
  ASSERT_EQ(kept.size(1), out);
  EXPECT_LT(largest(at::matmul(kept.t(), kept) - at::eye(out, at::kDouble)), 1e-12);
  EXPECT_LT(largest(at::matmul(to.dropped.t(), kept)), 1e-12);
  EXPECT_LT(largest(way_of(turn, out) - kept.t()), 1e-12);
  const ShortcutTensors path = residual_path(turn, in, kind);
  EXPECT_LT(largest(matrix_of(path, in, out) - kept.t().narrow(1, 0, in)), 1e-12);
  if (kind != ShortcutKind::kMatrix) {
    EXPECT_EQ(path.down.sizes(), (std::vector<int64_t>{kWidth - out, in}));
  }
}

INSTANTIATE_TEST_SUITE_P(Basis, EveryTurn,
                         ::testing::Values(Case{30, 30, ShortcutKind::kSymmetric, 0.3},   // equal widths
                                           Case{30, 30, ShortcutKind::kSymmetric, 1e-9},  // hardly turned
                                           Case{30, 30, ShortcutKind::kSymmetric, 0},     // the same subspace
                                           Case{30, 30, ShortcutKind::kSymmetric, 10},    // unrelated
                                           Case{25, 33, ShortcutKind::kSymmetric, 0.3},   // wider
                                           Case{33, 25, ShortcutKind::kLowRank, 0.3},     // narrower
                                           Case{33, 32, ShortcutKind::kLowRank, 1e-9},    // narrower by one
                                           Case{33, 25, ShortcutKind::kLowRank, 0},       // a part of the same
                                           Case{40, 25, ShortcutKind::kLowRank, 0.3},     // the first to be cut
                                           Case{30, 25, ShortcutKind::kMatrix, 0.3}));

TEST(Turn, ToAllDirectionsPassesTheStreamOn) {
  const Turn turn = turn_to(30, original_basis(kWidth, at::kCPU), ShortcutKind::kSymmetric);
  EXPECT_FALSE(turn.down.defined());
  EXPECT_TRUE(way_of(turn, kWidth).equal(at::eye(kWidth, at::kDouble)));
  EXPECT_FALSE(residual_path(turn, 30, ShortcutKind::kSymmetric).down.defined());
}

}  // namespace
}  // namespace dynslice
