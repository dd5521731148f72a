#include "slice/basis.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

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

// The residual path as a matrix [out, in].
at::Tensor path_of(const Turn& turn, int64_t in, int64_t out) {
  if (turn.weight.defined()) return turn.weight;
  at::Tensor path = at::eye(out, in, at::kDouble);
  if (!turn.down.defined()) return path;
  if (turn.up.defined()) return path + at::matmul(turn.up, turn.down);
  return at::matmul(path, at::eye(in, at::kDouble) - at::matmul(turn.down.t(), turn.down));
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
  const Basis from = random_basis(in, 0.4);
  Basis to = random_basis(out, angle);
  if (angle == 0) to = {from.kept.narrow(1, 0, out), at::cat({from.kept.narrow(1, out, in - out), from.dropped}, 1)};
  const Turn turn = turn_to(from, to, kind);
  const at::Tensor& kept = turn.basis.kept;
  ASSERT_EQ(kept.size(1), out);
  EXPECT_LT(largest(at::matmul(kept.t(), kept) - at::eye(out, at::kDouble)), 1e-12);
  EXPECT_LT(largest(at::matmul(to.dropped.t(), kept)), 1e-12);
  EXPECT_LT(largest(path_of(turn, in, out) - at::matmul(kept.t(), from.kept)), 1e-12);
  if (kind != ShortcutKind::kMatrix) {
    EXPECT_EQ(turn.down.size(0), kWidth - out);
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
  at::manual_seed(5);
  const Basis from = random_basis(30, 0.4);
  const Turn turn = turn_to(from, original_basis(kWidth, at::kCPU), ShortcutKind::kSymmetric);
  EXPECT_FALSE(turn.down.defined());
  EXPECT_TRUE(turn.basis.kept.narrow(1, 0, 30).equal(from.kept));
  EXPECT_LT(largest(at::matmul(turn.basis.kept.t(), turn.basis.kept) - at::eye(kWidth, at::kDouble)), 1e-12);
}

}  // namespace
}  // namespace dynslice
