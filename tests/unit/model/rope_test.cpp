#include "dynslice/model/rope.h"

#include <gtest/gtest.h>

#include <cmath>

namespace dynslice {
namespace {

constexpr int64_t kHeadDim = 64;

RopeConfig llama3() {
  RopeConfig rope;
  rope.theta = 5e5;
  rope.scaling = RopeScalingKind::kLlama3;
  rope.factor = 32;
  rope.original_max_position_embeddings = 8192;
  return rope;
}

// theta^(-2 pair / head_dim) in fp64.
double unscaled(const RopeConfig& rope, size_t pair) {
  return std::pow(rope.theta, -2.0 * static_cast<double>(pair) / kHeadDim);
}

TEST(Rope, WithoutScalingHasPowersOfTheta) {
  const RopeConfig rope;
  const std::vector<float> frequencies = inverse_frequencies(rope, kHeadDim);
  ASSERT_EQ(frequencies.size(), 32U);
  // fp32's pow is within a few units in the last place, 6e-8 each.
  for (size_t pair = 0; pair < 32; ++pair) EXPECT_NEAR(frequencies[pair] / unscaled(rope, pair), 1, 1e-6) << pair;
}

TEST(Rope, WithLinearScalingIsSlowerByTheFactor) {
  RopeConfig rope;
  const std::vector<float> plain = inverse_frequencies(rope, kHeadDim);
  rope.scaling = RopeScalingKind::kLinear;
  rope.factor = 4;  // a power of two, so that the quotient is exact
  const std::vector<float> scaled = inverse_frequencies(rope, kHeadDim);
  for (size_t pair = 0; pair < 32; ++pair) EXPECT_EQ(scaled[pair], plain[pair] / 4) << pair;
}

TEST(Rope, Llama3KeepsShortWavelengthsAndStretchesLongOnes) {
  const RopeConfig rope = llama3();
  EXPECT_EQ(llama3_divisor(rope, 8192.0 / 4 - 1), 1);
  EXPECT_EQ(llama3_divisor(rope, 8192.0 + 1), 32);
  // Half of the way from one turn to four in the original context: the mean of 1/32 and 1.
  EXPECT_NEAR(llama3_divisor(rope, 8192 / 2.5), 1 / ((1.0 / 32 + 1) / 2), 1e-12);
}

TEST(Rope, Llama3DividesByItsDivisor) {
  RopeConfig rope = llama3();
  const std::vector<float> scaled = inverse_frequencies(rope, kHeadDim);
  rope.scaling = RopeScalingKind::kNone;
  const std::vector<float> plain = inverse_frequencies(rope, kHeadDim);
  EXPECT_EQ(scaled.front(), plain.front());
  EXPECT_EQ(scaled.back(), plain.back() / 32);
}

TEST(Rope, DivisorsOfTheFileCarryTheWholeScaling) {
  RopeConfig rope = llama3();
  rope.frequency_divisors.assign(32, 2.0);
  const std::vector<float> scaled = inverse_frequencies(rope, kHeadDim);
  RopeConfig same;
  same.theta = rope.theta;
  const std::vector<float> plain = inverse_frequencies(same, kHeadDim);
  for (size_t pair = 0; pair < 32; ++pair) EXPECT_EQ(scaled[pair], plain[pair] / 2) << pair;
}

}  // namespace
}  // namespace dynslice
