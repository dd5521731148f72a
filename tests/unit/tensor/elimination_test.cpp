#include "dynslice/tensor/elimination.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <set>

#include "aten.h"

namespace dynslice {
namespace {

constexpr const char* kWhere = "a test";

at::Tensor moment_of(const at::Tensor& z) { return at::matmul(z.t(), z); }

at::Tensor random_values(int64_t rows, int64_t columns, uint64_t seed = 5) {
  at::manual_seed(seed);
  return at::randn({rows, columns}, at::kDouble);
}

std::set<int64_t> as_set(const at::Tensor& indices) {
  const int64_t* first = indices.const_data_ptr<int64_t>();
  return {first, first + indices.numel()};
}

// ½ ‖(z W - z_S W') S‖² by definition, G = S Sᵀ.
double loss_of(const at::Tensor& z, const at::Tensor& weights, const at::Tensor& g, const Elimination& elimination) {
  const at::Tensor kept = elimination.kept();
  const at::Tensor error = at::matmul(z, weights) - at::matmul(z.index_select(1, kept), elimination.refitted());
  return (at::matmul(error, g) * error).sum().item<double>() / 2;
}

at::Tensor random_directions(int64_t width) {
  const at::Tensor root = random_values(width, width, 8);
  return at::matmul(root, root.t()) / static_cast<double>(width);
}

TEST(Elimination, WithoutRemovalsLeavesTheRowsAsTheyAre) {
  const at::Tensor weights = random_values(12, 5);
  const Elimination elimination(moment_of(random_values(40, 12)), weights, {}, 1e-6, kWhere);
  EXPECT_TRUE(elimination.refitted().equal(weights));
  EXPECT_EQ(elimination.kept().numel(), 12);
}

TEST(Elimination, RefitsTheRestByLeastSquares) {
  const at::Tensor z = random_values(60, 20), weights = random_values(20, 7, 6);
  Elimination elimination(moment_of(z), weights, random_directions(7), 1e-12, kWhere);
  elimination.reduce_to(11);
  const at::Tensor kept = elimination.kept();
  ASSERT_EQ(kept.numel(), 11);
  const at::Tensor some = z.index_select(1, kept);
  const at::Tensor solved = at::linalg_solve(moment_of(some), at::matmul(some.t(), at::matmul(z, weights)));
  // Sums and updates in fp64 of a well-conditioned moment.
  EXPECT_LT((elimination.refitted() - solved).abs().max().item<double>(), 1e-8);
}

TEST(Elimination, TellsTheLossThatItCauses) {
  const at::Tensor z = random_values(80, 24), weights = random_values(24, 6, 6), g = random_directions(6);
  Elimination elimination(moment_of(z), weights, g, 1e-12, kWhere);
  for (const int64_t left : {23, 20, 9, 2}) {
    elimination.reduce_to(left);
    const double expected = loss_of(z, weights, g, elimination);
    // The root of G is taken in fp32.
    EXPECT_NEAR(elimination.removals().back().loss, expected, 1e-5 * expected) << left;
  }
  EXPECT_TRUE(std::ranges::is_sorted(elimination.removals(), {}, &Removal::loss));
}

TEST(Elimination, RemovesFirstWhatCostsLeast) {
  const at::Tensor z = random_values(50, 10), weights = random_values(10, 4, 6), g = random_directions(4);
  double best = std::numeric_limits<double>::infinity();
  int64_t cheapest = -1;
  for (int64_t j = 0; j < 10; ++j) {
    std::vector<int64_t> others;
    for (int64_t k = 0; k < 10; ++k) {
      if (k != j) others.push_back(k);
    }
    Elimination trial(moment_of(z), weights, g, 1e-12, kWhere);
    trial.keep_only(at::tensor(others, at::kLong));
    const double loss = loss_of(z, weights, g, trial);
    if (loss < best) cheapest = j;
    best = std::min(best, loss);
  }
  Elimination elimination(moment_of(z), weights, g, 1e-12, kWhere);
  elimination.reduce_to(9);
  EXPECT_EQ(elimination.removals().front().neuron, cheapest);
}

TEST(Elimination, TakesDeadNeuronsFirst) {
  at::Tensor z = random_values(300, 96);
  const at::Tensor dead = at::arange(3, 96, 7, at::kLong);
  z.index_fill_(1, dead, 0.0);
  Elimination elimination(moment_of(z), random_values(96, 8, 6), {}, 1e-9, kWhere);
  elimination.reduce_to(96 - dead.numel());
  for (const int64_t neuron : as_set(dead)) EXPECT_FALSE(as_set(elimination.kept()).contains(neuron));
}

// All 48 copies are as cheap at first: a block that took the cheapest without looking would take both of a pair.
TEST(Elimination, RemovesOnlyOneOfTwoNeuronsThatAreTheSame) {
  const at::Tensor half = random_values(400, 48), z = at::cat({half, half}, 1), weights = random_values(96, 8, 6);
  Elimination elimination(moment_of(z), weights, {}, 1e-9, kWhere);
  elimination.reduce_to(48);
  std::set<int64_t> names;
  for (const int64_t neuron : as_set(elimination.kept())) names.insert(neuron % 48);
  EXPECT_EQ(names.size(), 48U);
  // What is lost is what the ridge costs: nothing beside the output's own square of about 400 * 8 * 96.
  EXPECT_LT(loss_of(z, weights, at::eye(8, at::kDouble), elimination), 1e-3);
}

TEST(Elimination, OfActivationsOfLowRankKeepsTheOutputs) {
  const at::Tensor z = at::matmul(random_values(500, 9), random_values(9, 60, 6)), weights = random_values(60, 8, 7);
  Elimination elimination(moment_of(z), weights, {}, 1e-10, kWhere);
  elimination.reduce_to(9);
  const double whole = at::matmul(z, weights).square().sum().item<double>();
  // The square of what a ridge of 1e-10 of the mean leaves.
  EXPECT_LT(loss_of(z, weights, at::eye(8, at::kDouble), elimination), 1e-6 * whole);
}

TEST(Elimination, DoesNotDependOnTheOrderOfTheNeurons) {
  const at::Tensor z = random_values(200, 72), weights = random_values(72, 6, 6), g = random_directions(6);
  at::manual_seed(9);
  const at::Tensor order = at::randperm(72, at::kLong);
  Elimination one(moment_of(z), weights, g, 1e-6, kWhere);
  Elimination other(moment_of(z.index_select(1, order)), weights.index_select(0, order), g, 1e-6, kWhere);
  one.reduce_to(40);
  other.reduce_to(40);
  EXPECT_EQ(as_set(one.kept()), as_set(order.index_select(0, other.kept())));
}

TEST(Elimination, SolvesWithTheKeptNeuronsMoment) {
  const at::Tensor z = random_values(70, 18), right = random_values(18, 3, 6);
  Elimination elimination(moment_of(z), random_values(18, 4, 7), {}, 1e-12, kWhere);
  elimination.reduce_to(10);
  const at::Tensor kept = elimination.kept();
  const at::Tensor expected = at::linalg_solve(moment_of(z.index_select(1, kept)), right.index_select(0, kept));
  EXPECT_LT((elimination.solve(right) - expected).abs().max().item<double>(), 1e-9);
}

}  // namespace
}  // namespace dynslice
