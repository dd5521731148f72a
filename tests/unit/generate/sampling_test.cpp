#include "dynslice/generate/sampling.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>

#include "aten.h"
#include "unit/support/error_matchers.h"

namespace dynslice {
namespace {

std::vector<float> random_logits(size_t count, uint64_t seed, float scale = 3) {
  at::manual_seed(seed);
  const at::Tensor values = at::randn({static_cast<int64_t>(count)}) * scale;
  return {values.const_data_ptr<float>(), values.const_data_ptr<float>() + count};
}

at::Tensor tensor_of(const std::vector<float>& logits) { return at::tensor(logits); }

std::vector<double> softmax(const std::vector<float>& logits, double temperature) {
  std::vector<double> weights;
  const double largest = *std::max_element(logits.begin(), logits.end());
  for (const double logit : logits) weights.push_back(std::exp((logit - largest) / temperature));
  const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
  for (double& weight : weights) weight /= total;
  return weights;
}

TEST(Sampling, WithoutTemperatureTakesTheLikeliestAndOfEqualOnesTheFirst) {
  Sampler sampler({.top_k = 5, .top_p = 0.5, .seed = 3});
  EXPECT_EQ(sampler.next(tensor_of({1, 5, 2, 5, -1})), 1);
}

TEST(Sampling, FromOneTokenIsTheLikeliest) {
  Sampler one({.temperature = 2, .top_k = 1}), tiny({.temperature = 2, .top_p = 1e-9}), greedy({});
  for (uint64_t seed = 0; seed < 50; ++seed) {
    const at::Tensor logits = tensor_of(random_logits(1000, seed));
    const int32_t likeliest = greedy.next(logits);
    EXPECT_EQ(one.next(logits), likeliest);
    EXPECT_EQ(tiny.next(logits), likeliest);
  }
}

TEST(Sampling, GivesTheSameTokensForTheSameSeed) {
  const at::Tensor logits = tensor_of(random_logits(5000, 1));
  const auto draw = [&](uint64_t seed, int threads) {
    at::set_num_threads(threads);
    Sampler sampler({.temperature = 1.5, .top_k = 900, .top_p = 0.95, .seed = seed});
    std::vector<int32_t> ids;
    for (int i = 0; i < 50; ++i) ids.push_back(sampler.next(logits));
    return ids;
  };
  const int threads = at::get_num_threads();
  EXPECT_EQ(draw(7, 1), draw(7, 2));
  EXPECT_NE(draw(7, 1), draw(8, 1));
  at::set_num_threads(threads);
}

TEST(Sampling, DrawsEveryTokenAsOftenAsSoftmaxSays) {
  const std::vector<float> logits = random_logits(20, 5, 1);
  constexpr int kDraws = 40000;
  Sampler sampler({.temperature = 0.8, .seed = 11});
  std::vector<int> counts(logits.size(), 0);
  for (int i = 0; i < kDraws; ++i) ++counts[static_cast<size_t>(sampler.next(tensor_of(logits)))];
  const std::vector<double> expected = softmax(logits, 0.8);
  double chi_square = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    chi_square += std::pow(counts[i] - kDraws * expected[i], 2) / (kDraws * expected[i]);
  }
  EXPECT_LT(chi_square, 43.8);  // 19 degrees of freedom: exceeded with probability 0.001, and the seed is fixed
}

TEST(Sampling, CandidatesHaveTheProbabilitiesOfSoftmax) {
  const std::vector<float> logits = random_logits(300, 2);
  const std::vector<double> expected = softmax(logits, 0.7);
  const auto all = candidates(logits, {.temperature = 0.7});
  ASSERT_EQ(all.size(), logits.size());
  for (const Candidate& one : all) EXPECT_NEAR(one.probability, expected[static_cast<size_t>(one.id)], 1e-12);
}

TEST(Sampling, TopKKeepsTheKLikeliest) {
  const std::vector<float> logits = random_logits(1000, 3);
  std::vector<float> sorted = logits;
  std::sort(sorted.rbegin(), sorted.rend());
  for (const int64_t k : {1, 2, 17, 999, 1000, 5000}) {
    const auto kept = candidates(logits, {.temperature = 1, .top_k = k});
    ASSERT_EQ(kept.size(), static_cast<size_t>(std::min<int64_t>(k, 1000)));
    double sum = 0;
    for (const Candidate& one : kept) {
      EXPECT_GE(logits[static_cast<size_t>(one.id)], sorted[kept.size() - 1]);
      sum += one.probability;
    }
    EXPECT_NEAR(sum, 1, 1e-9);
  }
}

TEST(Sampling, TopPKeepsTheSmallestSetThatReachesTheShare) {
  for (const size_t count : {5, 70, 3000}) {
    for (const double p : {0.1, 0.5, 0.9, 0.999, 0.9999999}) {
      const std::vector<float> logits = random_logits(count, count, 2);
      std::vector<double> sorted = softmax(logits, 1);
      std::sort(sorted.rbegin(), sorted.rend());
      size_t size = 0;
      for (double sum = 0; size < count && sum < p;) sum += sorted[size++];
      const auto kept = candidates(logits, {.temperature = 1, .top_p = p});
      EXPECT_EQ(kept.size(), size) << count << " tokens, p = " << p;
      const double total = std::accumulate(sorted.begin(), sorted.begin() + static_cast<int64_t>(size), 0.0);
      for (size_t i = 0; i < kept.size(); ++i) EXPECT_NEAR(kept[i].probability, sorted[i] / total, 1e-9);
    }
  }
}

TEST(Sampling, TopPCountsWhatTopKLeaves) {
  // Of four equal tokens two are kept, and half of these is one.
  const auto kept = candidates(std::vector<float>{1, 1, 1, 1}, {.temperature = 1, .top_k = 2, .top_p = 0.5});
  ASSERT_EQ(kept.size(), 1U);
  EXPECT_EQ(kept[0].id, 0);
}

TEST(Sampling, LeavesOutTokensOfNoProbability) {
  const float none = -std::numeric_limits<float>::infinity();
  Sampler sampler({.temperature = 1, .seed = 1});
  for (int i = 0; i < 100; ++i) EXPECT_EQ(sampler.next(tensor_of({none, 0, none, none})), 1);
}

TEST(Sampling, RefusesLogitsThatAreNoNumbers) {
  for (const double temperature : {0.0, 1.0}) {
    for (const float bad : {std::nanf(""), std::numeric_limits<float>::infinity()}) {
      Sampler sampler({.temperature = temperature});
      testing::expect_error(ErrorKind::kBadInput, {"token 1"}, [&] { sampler.next(tensor_of({0, bad, 1})); });
    }
  }
}

TEST(Sampling, RefusesSettingsThatCannotBe) {
  const auto refused = [](const SamplingOptions& options, const char* name) {
    testing::expect_error(ErrorKind::kUsage, {name}, [&] { Sampler{options}; });
  };
  refused({.temperature = -0.1}, "temperature of -0.1");
  refused({.temperature = std::nan("")}, "temperature");
  refused({.temperature = INFINITY}, "temperature");
  refused({.top_k = -1}, "top-k of -1");
  refused({.top_p = 0}, "top-p of 0");
  refused({.top_p = 1.5}, "top-p of 1.5");
}

}  // namespace
}  // namespace dynslice
