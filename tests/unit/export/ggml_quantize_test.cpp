#include "export/ggml_quantize.h"

#include <gtest/gtest.h>

#include <cmath>
#include <stdexcept>
#include <vector>

#include "model/ggml_dequantize.h"

namespace dynslice {
namespace {

std::vector<float> there_and_back(GgmlType type, const std::vector<float>& values) {
  const GgmlFormat& format = ggml_format(type);
  std::vector<std::byte> blocks(values.size() / static_cast<size_t>(format.values) * static_cast<size_t>(format.bytes));
  EXPECT_TRUE(quantize(type, values, blocks));
  std::vector<float> again(values.size());
  dequantize(type, blocks, again);
  return again;
}

std::vector<float> wave() {
  std::vector<float> values(96);
  for (size_t i = 0; i < values.size(); ++i) values[i] = std::sin(static_cast<float>(i) * 0.7F) * static_cast<float>(i + 1);
  return values;
}

TEST(GgmlQuantize, ErrorsAreAtMostHalfAStep) {
  const std::vector<float> values = wave();
  EXPECT_EQ(there_and_back(GgmlType::kF32, values), values);
  for (const auto& [type, step] : {std::pair(GgmlType::kF16, 0x1p-10F), std::pair(GgmlType::kBF16, 0x1p-7F)}) {
    const std::vector<float> again = there_and_back(type, values);
    for (size_t i = 0; i < values.size(); ++i) EXPECT_LE(std::abs(again[i] - values[i]), 0.5F * step * std::abs(values[i]));
  }
  const std::vector<float> again = there_and_back(GgmlType::kQ8_0, values);
  for (size_t block = 0; block < 3; ++block) {
    float largest = 0;
    for (size_t i = 0; i < 32; ++i) largest = std::max(largest, std::abs(values[block * 32 + i]));
    for (size_t i = 0; i < 32; ++i) EXPECT_LE(std::abs(again[block * 32 + i] - values[block * 32 + i]), largest / 127 * 0.57F);
  }
}

TEST(GgmlQuantize, ZerosStayZeros) {
  EXPECT_EQ(there_and_back(GgmlType::kQ8_0, std::vector<float>(32)), std::vector<float>(32));
}

TEST(GgmlQuantize, ValuesTooLargeForTheTypeAreTold) {
  std::vector<float> values(32, 1.0F);
  values[3] = 1e9F;
  std::vector<std::byte> blocks(64);
  EXPECT_FALSE(quantize(GgmlType::kF16, values, blocks));
  EXPECT_FALSE(quantize(GgmlType::kQ8_0, values, std::span(blocks).first(34)));
  EXPECT_TRUE(quantize(GgmlType::kBF16, values, blocks));
}

TEST(GgmlQuantize, SizesThatDoNotFitAreADefect) {
  std::vector<std::byte> blocks(34);
  EXPECT_THROW(quantize(GgmlType::kQ8_0, std::vector<float>(31), blocks), std::logic_error);
  EXPECT_THROW(quantize(GgmlType::kF32, std::vector<float>(2), blocks), std::logic_error);
  EXPECT_THROW(quantize(GgmlType::kQ4_0, std::vector<float>(32), std::span(blocks).first(18)), std::logic_error);
}

}  // namespace
}  // namespace dynslice
