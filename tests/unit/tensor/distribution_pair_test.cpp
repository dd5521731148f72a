#include "dynslice/tensor/distribution_pair.h"

#include <gtest/gtest.h>

#include "aten.h"

namespace dynslice {
namespace {

// KL(reference || model) of whole rows in fp64.
at::Tensor direct(const at::Tensor& logits, const at::Tensor& reference) {
  const at::Tensor log_p = reference.to(at::kDouble).log_softmax(1), log_q = logits.to(at::kDouble).log_softmax(1);
  return (log_p.exp() * (log_p - log_q)).sum(1);
}

double largest_difference(const at::Tensor& a, const at::Tensor& b) { return (a - b).abs().max().item<double>(); }

// All columns, in blocks of different widths, of rows in two parts.
DistributionPairs added(const at::Tensor& logits, const at::Tensor& reference) {
  const int64_t rows = logits.size(0), columns = logits.size(1);
  DistributionPairs pairs(rows, at::kCPU);
  for (const auto& [first, count] : {std::pair<int64_t, int64_t>{0, 3}, {3, rows - 3}}) {
    int64_t begin = 0;
    for (int64_t width = 1; begin < columns; begin += width, width = std::min(2 * width + 1, columns - begin)) {
      const auto part = [&](const at::Tensor& x) { return x.narrow(0, first, count).narrow(1, begin, width); };
      pairs.add(first, begin, part(logits), part(reference));
    }
  }
  return pairs;
}

class Pairs : public ::testing::TestWithParam<at::ScalarType> {
 protected:
  Pairs() { at::manual_seed(5); }
  static at::Tensor random_logits(double scale) { return (at::randn({7, 1001}) * scale + 3).to(GetParam()); }
};

TEST_P(Pairs, HaveTheDivergenceOfWholeRows) {
  for (const double scale : {0.01, 1.0, 30.0}) {
    const at::Tensor reference = random_logits(scale);
    const at::Tensor logits = reference + random_logits(0.1 * scale);
    const DistributionPairs pairs = added(logits, reference);
    const at::Tensor expected = direct(logits, reference);
    // fp32 sums are right to about 1e-7 of the differences of logits that they are made of.
    EXPECT_LT(largest_difference(pairs.divergences(), expected), 2e-6 * (3 + scale));
    EXPECT_LT(largest_difference(pairs.log_sums(), logits.to(at::kDouble).logsumexp({1})), 1e-6);
    EXPECT_LT(largest_difference(pairs.reference_log_sums(), reference.to(at::kDouble).logsumexp({1})), 1e-6);
  }
}

TEST_P(Pairs, OfEqualRowsHaveNoDivergence) {
  const at::Tensor logits = random_logits(10);
  const DistributionPairs pairs = added(logits, logits);
  EXPECT_EQ(pairs.divergences().abs().max().item<double>(), 0);
  EXPECT_TRUE(pairs.same_top().all().item<bool>());
}

TEST_P(Pairs, KnowWhetherTheTopsAreTheSame) {
  const at::Tensor logits = random_logits(1), reference = random_logits(1);
  at::Tensor agreeing = reference.clone();
  for (const int64_t row : {0, 4}) agreeing[row][logits[row].argmax().item<int64_t>()] = 50;
  const at::Tensor expected = logits.argmax(1).eq(agreeing.argmax(1));
  EXPECT_TRUE(added(logits, agreeing).same_top().equal(expected));
  EXPECT_EQ(expected.sum().item<int64_t>(), 2);
}

TEST_P(Pairs, TakeTheFirstOfEqualTops) {
  at::Tensor logits = at::zeros({4, 100}, GetParam()), reference = at::zeros({4, 100}, GetParam());
  reference.select(1, 3).fill_(1);
  reference.select(1, 70).fill_(1);
  logits.select(1, 3).fill_(2);
  EXPECT_TRUE(added(logits, reference).same_top().all().item<bool>());
  logits.select(1, 70).fill_(2.5);
  EXPECT_FALSE(added(logits, reference).same_top().any().item<bool>());
}

TEST_P(Pairs, OfLogitsThatAreNotFiniteHaveNone) {
  at::Tensor logits = random_logits(1);
  const at::Tensor reference = random_logits(1);
  logits[2][500] = NAN;
  logits[5][10] = INFINITY;
  const at::Tensor finite = added(logits, reference).log_sums().isfinite();
  EXPECT_EQ(finite.sum().item<int64_t>(), 5);
  EXPECT_FALSE(finite[2].item<bool>());
  EXPECT_FALSE(finite[5].item<bool>());
}

// fp32 takes the loops, fp64 the operators that a device would.
INSTANTIATE_TEST_SUITE_P(Dtypes, Pairs, ::testing::Values(at::kFloat, at::kDouble));

}  // namespace
}  // namespace dynslice
