#include "dynslice/formats/gguf/ggml_dequantize.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <stdexcept>
#include <vector>

namespace dynslice {
namespace {

constexpr uint8_t kOneHigh = 0x3C;  // high byte of 1.0 in half precision; the low byte is 0

// One block of zeros in which single bytes are set.
class Block {
 public:
  explicit Block(GgmlType type) : type_(type), bytes_(static_cast<size_t>(ggml_format(type).bytes)) {}
  Block& set(size_t at, int value) {
    bytes_.at(at) = static_cast<std::byte>(value);
    return *this;
  }
  std::vector<float> decode() const {
    std::vector<float> values(static_cast<size_t>(ggml_format(type_).values));
    dequantize(type_, bytes_, values);
    return values;
  }

 private:
  GgmlType type_;
  std::vector<std::byte> bytes_;
};

TEST(HalfToFloat, IsExactForEveryFiniteHalf) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const int exponent = static_cast<int>((bits >> 10) & 31), fraction = static_cast<int>(bits & 0x3FF);
    if (exponent == 31) continue;
    const double magnitude = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
    const float value = half_to_float(static_cast<uint16_t>(bits));
    ASSERT_EQ(static_cast<double>(std::abs(value)), magnitude) << bits;
    ASSERT_EQ(std::signbit(value), (bits & 0x8000) != 0) << bits;
  }
}

TEST(HalfToFloat, KeepsInfinityAndNan) {
  EXPECT_EQ(half_to_float(0x7C00), std::numeric_limits<float>::infinity());
  EXPECT_EQ(half_to_float(0xFC00), -std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::isnan(half_to_float(0x7E00)));
}

TEST(Dequantize, DecodesPlainNumbers) {
  EXPECT_EQ(Block(GgmlType::kF32).set(2, 0x80).set(3, 0x3F).decode()[0], 1.0F);
  EXPECT_EQ(Block(GgmlType::kF16).set(1, 0xC0).decode()[0], -2.0F);
  EXPECT_EQ(Block(GgmlType::kBF16).set(0, 0x40).set(1, 0xC0).decode()[0], -3.0F);
}

TEST(Dequantize, DecodesQ4_0) {
  const auto values = Block(GgmlType::kQ4_0).set(1, kOneHigh).set(2, 0x9F).decode();
  EXPECT_EQ(values[0], 7.0F);   // low nibble 15 - 8
  EXPECT_EQ(values[16], 1.0F);  // high nibble 9 - 8
  EXPECT_EQ(values[1], -8.0F);
}

TEST(Dequantize, DecodesQ4_1) {
  const auto values = Block(GgmlType::kQ4_1).set(1, kOneHigh).set(3, 0xC0).set(4 + 15, 0x9F).decode();
  EXPECT_EQ(values[15], 13.0F);  // 15 - 2
  EXPECT_EQ(values[31], 7.0F);
  EXPECT_EQ(values[0], -2.0F);
}

TEST(Dequantize, DecodesQ5_0) {
  // The fifth bits of values 1 and 17 are bits 1 and 17 of the word at byte 2.
  const auto values = Block(GgmlType::kQ5_0).set(1, kOneHigh).set(2, 0x02).set(4, 0x02).set(6 + 1, 0x31).decode();
  EXPECT_EQ(values[1], 1.0F);   // 16 + 1 - 16
  EXPECT_EQ(values[17], 3.0F);  // 16 + 3 - 16
  EXPECT_EQ(values[0], -16.0F);
}

TEST(Dequantize, DecodesQ5_1) {
  const auto values = Block(GgmlType::kQ5_1)
                          .set(1, kOneHigh)
                          .set(3, kOneHigh)
                          .set(4, 0x01)
                          .set(7, 0x80)
                          .set(8, 0x02)
                          .set(23, 0x50)
                          .decode();
  EXPECT_EQ(values[0], 19.0F);   // 16 + 2 + 1
  EXPECT_EQ(values[31], 22.0F);  // 16 + 5 + 1
  EXPECT_EQ(values[16], 1.0F);
}

TEST(Dequantize, DecodesQ8_0) {
  const auto values = Block(GgmlType::kQ8_0).set(1, 0x38).set(2, 0x81).set(33, 0x7F).decode();  // scale 0.5
  EXPECT_EQ(values[0], -63.5F);
  EXPECT_EQ(values[31], 63.5F);
  EXPECT_EQ(values[1], 0.0F);
}

TEST(Dequantize, DecodesQ2_K) {
  Block block(GgmlType::kQ2_K);
  block.set(81, 0x40).set(83, 0x38);                                    // super-scales 2 and 0.5
  block.set(0, 0x21).set(2, 0x03).set(4, 0x10).set(6, 0x02);            // minimum and scale of groups 0, 2, 4, 6
  const auto values = block.set(16, 0xE4).set(16 + 32, 0x01).decode();  // 0, 1, 2, 3 in pairs of bits
  EXPECT_EQ(values[0], -1.0F);                                          // 2 * 1 * 0 - 0.5 * 2
  EXPECT_EQ(values[32], 6.0F);                                          // 2 * 3 * 1
  EXPECT_EQ(values[64], -0.5F);                                         // 0 - 0.5 * 1
  EXPECT_EQ(values[96], 12.0F);                                         // 2 * 2 * 3
  EXPECT_EQ(values[128], 0.0F);
  EXPECT_EQ(block.set(8, 0x01).decode()[128], 2.0F);
}

TEST(Dequantize, DecodesQ3_K) {
  Block block(GgmlType::kQ3_K);
  block.set(109, kOneHigh);
  EXPECT_EQ(block.decode()[200], 128.0F);  // (0 - 32) * (0 - 4)
  block.set(96, 0x01).set(104, 0x02);      // scale 0: 1 + 2 * 16 - 32 = 1
  block.set(0, 0x01).set(32, 0x03);        // value 0: mask bit set, bits 3
  const auto values = block.decode();
  EXPECT_EQ(values[0], 3.0F);
  EXPECT_EQ(values[1], -4.0F);
  EXPECT_EQ(values[16], 128.0F);
  EXPECT_EQ(values[64], 128.0F);
}

TEST(Dequantize, DecodesQ4_K) {
  Block block(GgmlType::kQ4_K);
  block.set(1, kOneHigh).set(3, kOneHigh);
  // Group 0: scale 5, minimum 7. Group 4: low bits 1 and 2 at byte 12, high bits 1 and 2 above those of group 0.
  block.set(4, 0x45).set(8, 0x87).set(12, 0x21);
  const auto values = block.set(16, 0xF3).set(16 + 64, 0x03).decode();
  EXPECT_EQ(values[0], 8.0F);     // 5 * 3 - 7
  EXPECT_EQ(values[32], 0.0F);    // group 1 has scale 0
  EXPECT_EQ(values[128], 17.0F);  // 17 * 3 - 34
}

TEST(Dequantize, DecodesQ5_K) {
  Block block(GgmlType::kQ5_K);
  block.set(1, kOneHigh).set(3, kOneHigh).set(4, 0x45).set(8, 0x87).set(12, 0x21);
  const auto values = block.set(16, 0x11).set(48, 0xF3).set(48 + 64, 0x03).decode();  // fifth bits of groups 0 and 4
  EXPECT_EQ(values[0], 88.0F);                                                        // 5 * (16 + 3) - 7
  EXPECT_EQ(values[128], 289.0F);                                                     // 17 * (16 + 3) - 34
  EXPECT_EQ(values[129], -34.0F);
}

TEST(Dequantize, DecodesQ6_K) {
  Block block(GgmlType::kQ6_K);
  block.set(209, 0x38).set(192, 2).set(196, 0xFF);  // super-scale 0.5, scales 2 and -1
  const auto values = block.set(0, 0x21).set(128, 0x31).decode();
  EXPECT_EQ(values[0], -15.0F);  // 0.5 * 2 * (1 + 16 - 32)
  EXPECT_EQ(values[64], -9.0F);  // 0.5 * -1 * (2 + 48 - 32)
  EXPECT_EQ(values[1], -32.0F);
  EXPECT_EQ(values[32], 0.0F);
}

TEST(Dequantize, DecodesOneBlockAfterTheOther) {
  std::vector<std::byte> blocks(2 * 34);
  blocks[1] = blocks[35] = std::byte{kOneHigh};
  blocks[2] = std::byte{1};
  blocks[36] = std::byte{2};
  std::vector<float> values(64);
  dequantize(GgmlType::kQ8_0, blocks, values);
  EXPECT_EQ(values[0], 1.0F);
  EXPECT_EQ(values[32], 2.0F);
}

TEST(Dequantize, RefusesSizesThatDoNotFit) {
  std::vector<std::byte> blocks(35);
  std::vector<float> values(32);
  EXPECT_THROW(dequantize(GgmlType::kQ8_0, blocks, values), std::logic_error);
  blocks.resize(68);
  EXPECT_THROW(dequantize(GgmlType::kQ8_0, blocks, values), std::logic_error);
}

}  // namespace
}  // namespace dynslice
