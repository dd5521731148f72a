#include "dynslice/formats/gguf/ggml_quantize.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "dynslice/formats/gguf/ggml_dequantize.h"

namespace dynslice {
namespace {

constexpr GgmlType kQuantized[] = {GgmlType::kQ4_0, GgmlType::kQ4_1, GgmlType::kQ5_0, GgmlType::kQ5_1, GgmlType::kQ8_0,
                                   GgmlType::kQ2_K, GgmlType::kQ3_K, GgmlType::kQ4_K, GgmlType::kQ5_K, GgmlType::kQ6_K};

std::string name_of(GgmlType type) { return ggml_format(type).name; }
bool is_k(GgmlType type) { return ggml_grid(type).block_values == 256; }
bool has_offset(GgmlType type) {
  return name_of(type).ends_with("_1") || (is_k(type) && type != GgmlType::kQ3_K && type != GgmlType::kQ6_K);
}

// Normally distributed, the same on every platform's library.
std::vector<float> gaussian(size_t count, float deviation, uint32_t seed = 1) {
  std::mt19937 random(seed);
  std::vector<float> values(count);
  for (float& value : values) {
    double sum = 0;
    for (int i = 0; i < 12; ++i) sum += static_cast<double>(random()) / 0x1p32;
    value = deviation * static_cast<float>(sum - 6);
  }
  return values;
}

// One block and its grid.
struct FittedBlock {
  explicit FittedBlock(GgmlType block_type)
      : type(block_type),
        grid(ggml_grid(type)),
        bytes(static_cast<size_t>(ggml_format(type).bytes)),
        scales(static_cast<size_t>(grid.block_values / grid.group_values)),
        offsets(scales.size()) {}

  bool fit(std::span<const float> values, std::span<const float> weights = {}) {
    return fit_block(type, values, weights, bytes, scales, offsets);
  }
  std::vector<float> decode() const {
    std::vector<float> values(static_cast<size_t>(grid.block_values));
    dequantize(type, bytes, values);
    return values;
  }
  float value(size_t i, int code) const {
    const size_t group = i / static_cast<size_t>(grid.group_values);
    return scales[group] * static_cast<float>(code) + offsets[group];
  }
  // The smallest possible error of value i.
  float distance(size_t i, float wanted) const {
    float least = std::numeric_limits<float>::infinity();
    for (int code = 0; code < grid.codes; ++code) least = std::min(least, std::abs(value(i, code) - wanted));
    return least;
  }

  GgmlType type;
  GgmlGrid grid;
  std::vector<std::byte> bytes;
  std::vector<float> scales, offsets;
};

// The values of quantized formats, and whether the encoding was possible.
std::pair<std::vector<float>, bool> there_and_back(GgmlType type, std::span<const float> values) {
  const GgmlFormat& format = ggml_format(type);
  std::vector<std::byte> blocks(values.size() / static_cast<size_t>(format.values) * static_cast<size_t>(format.bytes));
  const bool fits = quantize(type, values, blocks);
  std::vector<float> again(values.size());
  dequantize(type, blocks, again);
  return {again, fits};
}

double squared_error(std::span<const float> values, std::span<const float> again) {
  double sum = 0;
  for (size_t i = 0; i < values.size(); ++i)
    sum += std::pow(static_cast<double>(values[i]) - static_cast<double>(again[i]), 2);
  return sum;
}

// What rounding on a grid from the smallest to the largest value, or as far on either side of zero, costs when every
// group may have any scale.
double plain_error(GgmlType type, std::span<const float> values) {
  const GgmlGrid grid = ggml_grid(type);
  const auto per_group = static_cast<size_t>(grid.group_values);
  double sum = 0;
  for (size_t first = 0; first < values.size(); first += per_group) {
    const auto group = values.subspan(first, per_group);
    const auto [least, most] = std::ranges::minmax(group);
    const double largest = std::max(std::abs(least), std::abs(most));
    const double low = has_offset(type) ? least : -largest, high = has_offset(type) ? most : largest;
    const double step = (high - low) / (grid.codes - 1);
    for (const float value : group) sum += std::pow(low + std::round((value - low) / step) * step - value, 2);
  }
  return sum;
}

class EveryFormat : public testing::TestWithParam<GgmlType> {};
INSTANTIATE_TEST_SUITE_P(GgmlQuantize, EveryFormat, testing::ValuesIn(kQuantized),
                         [](const auto& instance) { return name_of(instance.param); });

TEST_P(EveryFormat, DecodesEveryCodeToScaleTimesCodePlusOffset) {
  FittedBlock block(GetParam());
  const auto count = static_cast<size_t>(block.grid.block_values);
  for (const float mean : {0.0F, 0.03F, -1.0F}) {
    std::vector<float> values = gaussian(count, 0.05F, 7);
    for (size_t i = 0; i < count; ++i) values[i] = values[i] * (1 + static_cast<float>(i % 97)) + mean;
    ASSERT_TRUE(block.fit(values));
    for (int shift = 0; shift < block.grid.codes; ++shift) {
      std::vector<uint8_t> codes(count);
      for (size_t i = 0; i < count; ++i)
        codes[i] = static_cast<uint8_t>((static_cast<int>(i * 5 + i / 16) + shift) % block.grid.codes);
      store_codes(block.type, codes, block.bytes);  // over the codes of the last turn
      const std::vector<float> decoded = block.decode();
      for (size_t i = 0; i < count; ++i)
        ASSERT_EQ(decoded[i], block.value(i, codes[i])) << i << " " << static_cast<int>(codes[i]);
    }
  }
}

TEST_P(EveryFormat, TakesTheNearestCodes) {
  FittedBlock block(GetParam());
  const std::vector<float> values = gaussian(static_cast<size_t>(block.grid.block_values), 0.05F);
  ASSERT_TRUE(block.fit(values));
  const auto [again, fits] = there_and_back(GetParam(), values);
  ASSERT_TRUE(fits);
  // A tie may go either way, and is one but for rounding.
  for (size_t i = 0; i < values.size(); ++i)
    EXPECT_LE(std::abs(again[i] - values[i]), block.distance(i, values[i]) + 1e-6F) << i;
}

TEST_P(EveryFormat, LosesLessThanPlainRoundingWithFreeScales) {
  const std::vector<float> values = gaussian(256 * 64, 0.02F);
  const auto [again, fits] = there_and_back(GetParam(), values);
  ASSERT_TRUE(fits);
  // Measured: 0.70 to 0.91 of the plain error.
  EXPECT_LT(squared_error(values, again), 0.95 * plain_error(GetParam(), values));
}

TEST_P(EveryFormat, LosesTheSameWhateverTheUnit) {
  const std::vector<float> values = gaussian(256 * 16, 1.0F);
  const double error = squared_error(values, there_and_back(GetParam(), values).first);
  for (const float unit : {0x1p-8F, 0x1p12F}) {
    std::vector<float> scaled = values;
    for (float& value : scaled) value *= unit;
    const auto [again, fits] = there_and_back(GetParam(), scaled);
    ASSERT_TRUE(fits);
    // Super-scales near 2^-24 are coarser in half precision.
    EXPECT_NEAR(squared_error(scaled, again) / (unit * unit), error, 0.05 * error) << unit;
  }
}

TEST_P(EveryFormat, ServesHeavyValuesBetter) {
  FittedBlock block(GetParam());
  const auto count = static_cast<size_t>(block.grid.block_values);
  double plain = 0, weighted = 0;
  for (uint32_t seed = 0; seed < 16; ++seed) {
    const std::vector<float> values = gaussian(count, 0.05F, seed);
    std::vector<float> weights(count, 1e-3F);
    for (size_t i = 0; i < count; i += 4) weights[i] = 1e6F;
    ASSERT_TRUE(block.fit(values));
    for (size_t i = 0; i < count; i += 4) plain += std::pow(block.distance(i, values[i]), 2);
    ASSERT_TRUE(block.fit(values, weights));
    for (size_t i = 0; i < count; i += 4) weighted += std::pow(block.distance(i, values[i]), 2);
  }
  EXPECT_LT(weighted, 0.8 * plain);
}

TEST_P(EveryFormat, EqualWeightsAreNoWeights) {
  FittedBlock plain(GetParam()), weighted(GetParam());
  const auto count = static_cast<size_t>(plain.grid.block_values);
  const std::vector<float> values = gaussian(count, 0.05F);
  ASSERT_TRUE(plain.fit(values));
  for (const float weight : {0.0F, 1e-20F, 7.0F, 1e30F}) {
    ASSERT_TRUE(weighted.fit(values, std::vector<float>(count, weight)));
    EXPECT_EQ(weighted.bytes, plain.bytes) << weight;
  }
}

TEST_P(EveryFormat, AnOutlierWithoutWeightIsGivenUp) {
  FittedBlock block(GetParam());
  const auto count = static_cast<size_t>(block.grid.block_values);
  double without = 0, with = 0;
  const auto add_error = [&](const std::vector<float>& values, const std::vector<float>& weights, double& sum) {
    ASSERT_TRUE(block.fit(values, weights));
    for (size_t i = 0; i < count; ++i) sum += weights[i] * std::pow(block.distance(i, values[i]), 2);
  };
  for (uint32_t seed = 0; seed < 16; ++seed) {
    std::vector<float> values = gaussian(count, 1.0F, seed), weights(count, 1.0F);
    weights[3] = 0.0F;
    add_error(values, weights, without);
    values[3] = 16.0F;
    add_error(values, weights, with);
  }
  // Kept, the outlier would multiply the error of its group by 10 or more.
  EXPECT_LT(with, 1.25 * without);
}

TEST_P(EveryFormat, AnOutlierWithWeightIsKept) {
  std::vector<float> values = gaussian(256, 1e-3F);
  values[200] = -5.0F;
  const auto [again, fits] = there_and_back(GetParam(), values);
  ASSERT_TRUE(fits);
  EXPECT_NEAR(again[200], -5.0F, 0.02F);
}

TEST_P(EveryFormat, ZerosStayZerosAndWhatIsTooSmallBecomesZero) {
  std::vector<float> values(256);
  EXPECT_EQ(there_and_back(GetParam(), values).first, values);
  for (size_t i = 0; i < values.size(); ++i) values[i] = (i % 2 == 0 ? 1e-40F : -1e-12F) * static_cast<float>(i);
  const auto [again, fits] = there_and_back(GetParam(), values);
  EXPECT_TRUE(fits);
  EXPECT_EQ(again, std::vector<float>(256));
}

TEST_P(EveryFormat, TinyValuesAreRoundedToMultiplesOfTheSmallestHalf) {
  const std::vector<float> values = gaussian(256, 3e-7F);
  const auto [again, fits] = there_and_back(GetParam(), values);
  ASSERT_TRUE(fits);
  // The smallest step that there is, 2^-24, costs 2^-24 / sqrt(12) = 1.7e-8; two bits need a larger one.
  const double error = std::sqrt(squared_error(values, again) / 256);
  EXPECT_LT(error, ggml_grid(GetParam()).codes > 4 ? 0.2 * 3e-7 : 0.4 * 3e-7);
}

TEST_P(EveryFormat, ConstantBlocksAreNearlyExact) {
  for (const float value : {1.0F, -1.0F, 0.3F, -0.0123F, 1234.5F}) {
    const auto [again, fits] = there_and_back(GetParam(), std::vector<float>(256, value));
    ASSERT_TRUE(fits);
    // Half precision: 2^-12, and as much for the product of two.
    for (const float back : again) EXPECT_NEAR(back, value, std::abs(value) * 0x1p-11F) << value;
  }
}

TEST_P(EveryFormat, BlocksOfMixedSizesAreServedGroupByGroup) {
  std::vector<float> values = gaussian(256, 1.0F);
  for (size_t i = 0; i < 256; ++i) values[i] *= i < 128 ? 1.0F : 0.1F;
  const auto [again, fits] = there_and_back(GetParam(), values);
  ASSERT_TRUE(fits);
  const std::span<const float> tail = std::span(values).subspan(128), back = std::span(again).subspan(128);
  double size = 0;
  for (const float value : tail) size += value * value;
  // With one scale for all, the small values would be lost in 2 and 3 bits: a step is larger than they are.
  const double most = ggml_grid(GetParam()).codes > 4 ? 0.05 : 0.25;
  EXPECT_LT(squared_error(tail, back), most * size);
}

TEST_P(EveryFormat, WhatHasNoPlaceIsRefused) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const float wrong : {1e30F, -3e38F, 1e9F, kInfinity, -kInfinity, std::numeric_limits<float>::quiet_NaN()}) {
    std::vector<float> values = gaussian(256, 1.0F);
    values[100] = wrong;
    const auto [again, fits] = there_and_back(GetParam(), values);
    EXPECT_FALSE(fits) << wrong;
    // What is there of the refused block is finite.
    for (const float value : again) EXPECT_TRUE(std::isfinite(value)) << wrong;
  }
  EXPECT_TRUE(there_and_back(GetParam(), gaussian(256, 1e4F)).second);
}

TEST(GgmlQuantize, FloatsAreRounded) {
  const std::vector<float> values = gaussian(96, 3.0F);
  EXPECT_EQ(there_and_back(GgmlType::kF32, values).first, values);
  for (const auto& [type, step] : {std::pair(GgmlType::kF16, 0x1p-10F), std::pair(GgmlType::kBF16, 0x1p-7F)}) {
    const std::vector<float> again = there_and_back(type, values).first;
    for (size_t i = 0; i < values.size(); ++i)
      EXPECT_LE(std::abs(again[i] - values[i]), 0.5F * step * std::abs(values[i]));
    EXPECT_FALSE(is_quantized(type));
  }
  const std::vector<float> large(32, 1e9F);
  EXPECT_FALSE(there_and_back(GgmlType::kF16, large).second);
  EXPECT_TRUE(there_and_back(GgmlType::kBF16, large).second);
}

TEST(GgmlQuantize, SizesThatDoNotFitAreADefect) {
  std::vector<std::byte> bytes(144);
  const std::vector<float> values(256);
  std::vector<float> scales(8), offsets(8);
  const std::vector<uint8_t> codes(256);
  EXPECT_THROW(quantize(GgmlType::kQ8_0, std::span(values).first(31), std::span(bytes).first(34)), std::logic_error);
  EXPECT_THROW(quantize(GgmlType::kF32, std::span(values).first(2), bytes), std::logic_error);
  EXPECT_THROW(fit_block(GgmlType::kQ4_K, std::span(values).first(255), {}, bytes, scales, offsets), std::logic_error);
  EXPECT_THROW(fit_block(GgmlType::kQ4_K, values, std::span(values).first(8), bytes, scales, offsets),
               std::logic_error);
  EXPECT_THROW(fit_block(GgmlType::kQ4_K, values, {}, bytes, std::span(scales).first(7), offsets), std::logic_error);
  EXPECT_THROW(store_codes(GgmlType::kQ5_K, codes, bytes), std::logic_error);
  EXPECT_THROW(store_codes(GgmlType::kQ4_K, std::span(codes).first(32), bytes), std::logic_error);
  EXPECT_THROW(ggml_grid(GgmlType::kF16), std::logic_error);
  EXPECT_THROW(fit_block(GgmlType::kF32, std::span(values).first(1), {}, bytes, scales, offsets), std::logic_error);
}

}  // namespace
}  // namespace dynslice
