#include "dynslice/formats/safetensors/packed_weights.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <stdexcept>
#include <vector>

namespace dynslice {
namespace {

std::vector<uint8_t> random_codes(size_t count, int bits, unsigned seed) {
  std::mt19937 engine(seed);
  std::vector<uint8_t> codes(count);
  for (uint8_t& code : codes) code = static_cast<uint8_t>(engine() % (1U << bits));
  return codes;
}

// Bit by bit, as the layouts are defined.
std::vector<int32_t> packed(const std::vector<uint8_t>& codes, int bits, CodeLayout layout) {
  std::vector<uint32_t> words(static_cast<size_t>(packed_words(std::ssize(codes), bits, layout)));
  const auto width = static_cast<size_t>(bits), in_word = 32 / width;
  for (size_t i = 0; i < codes.size(); ++i) {
    for (size_t bit = 0; bit < width; ++bit) {
      const size_t place =
          layout == CodeLayout::kDense ? i * width + bit : i / in_word * 32 + i % in_word * width + bit;
      words.at(place / 32) |= ((codes[i] >> bit) & 1U) << (place % 32);
    }
  }
  std::vector<int32_t> result(words.size());
  std::memcpy(result.data(), words.data(), words.size() * 4);
  return result;
}

class Bits : public ::testing::TestWithParam<int> {};

TEST_P(Bits, OfCodeIBeginAtITimesTheirNumber) {
  for (size_t count = 0; count < 140; ++count) {
    const std::vector<uint8_t> codes = random_codes(count, GetParam(), 5);
    std::vector<int32_t> words(static_cast<size_t>(packed_words(std::ssize(codes), GetParam())), -1);
    ASSERT_EQ(words.size(), (count * static_cast<size_t>(GetParam()) + 31) / 32);
    pack_codes(codes, GetParam(), words);
    ASSERT_EQ(words, packed(codes, GetParam(), CodeLayout::kDense)) << count;
  }
}

TEST_P(Bits, ComeBackFromBothLayouts) {
  for (const CodeLayout layout : {CodeLayout::kDense, CodeLayout::kWholeCodes}) {
    for (size_t count = 0; count < 140; ++count) {
      const std::vector<uint8_t> codes = random_codes(count, GetParam(), 6);
      std::vector<uint8_t> unpacked(count, 255);
      unpack_codes(packed(codes, GetParam(), layout), GetParam(), unpacked, layout);
      ASSERT_EQ(unpacked, codes) << count;
    }
  }
}

TEST_P(Bits, TooManyAreRefused) {
  std::vector<uint8_t> codes(5, 0);
  std::vector<int32_t> words(static_cast<size_t>(packed_words(5, GetParam())));
  if (GetParam() < 8) {
    codes[3] = static_cast<uint8_t>(1U << GetParam());
    EXPECT_THROW(pack_codes(codes, GetParam(), words), std::logic_error);
  }
  words.push_back(0);
  EXPECT_THROW(pack_codes(std::vector<uint8_t>(5, 0), GetParam(), words), std::logic_error);
  EXPECT_THROW(unpack_codes(words, GetParam(), codes), std::logic_error);
}

// What zero points a matrix has.
enum class Zeros { kNone, kPacked, kPlain };

class Matrix {
 public:
  Matrix(int64_t rows, int64_t columns, int bits, int64_t group_size, CodeLayout layout, Zeros zeros) {
    matrix_ = {rows, columns, bits, layout, group_size};
    codes_ = random_codes(static_cast<size_t>(rows * columns), bits, 8);
    zeros_ = random_codes(static_cast<size_t>(rows * matrix_.groups()), bits, 9);
    std::string bytes;
    for (int64_t row = 0; row < rows; ++row)
      append(bytes, packed(part(codes_, row * columns, columns, 1), bits, layout));
    place(codes_bytes_, bytes);
    if (zeros == Zeros::kNone) {
      zeros_.assign(zeros_.size(), static_cast<uint8_t>(1 << (bits - 1)));
    } else if (zeros == Zeros::kPlain) {
      bytes.clear();
      for (const uint8_t zero : zeros_) bytes.push_back(static_cast<char>(zero - (1 << (bits - 1))));
      place(zeros_bytes_, bytes);
      matrix_.plain_zeros = begin(zeros_bytes_);
    } else {
      place(zeros_bytes_, packed_down(rows, bits, layout));
      matrix_.packed_zeros = begin(zeros_bytes_);
    }
    matrix_.codes = begin(codes_bytes_);
    std::mt19937 engine(10);
    scales_.resize(zeros_.size());
    for (float& scale : scales_) scale = static_cast<float>(engine() % 1000 + 1) / 777.0F;
  }

  const PackedMatrix& operator*() const { return matrix_; }
  const float* scales(int64_t row) const { return scales_.data() + row * matrix_.groups(); }

  float value(int64_t row, int64_t column) const {
    const auto group = static_cast<size_t>(row * matrix_.groups() + column / matrix_.group_size);
    const int code = codes_[static_cast<size_t>(row * matrix_.columns + column)];
    return static_cast<float>(code - zeros_[group]) * scales_[group];
  }

 private:
  static std::vector<uint8_t> part(const std::vector<uint8_t>& codes, int64_t first, int64_t count, int64_t step) {
    std::vector<uint8_t> chosen;
    for (int64_t i = 0; i < count; ++i) chosen.push_back(codes[static_cast<size_t>(first + i * step)]);
    return chosen;
  }
  static void append(std::string& bytes, const std::vector<int32_t>& words) {
    bytes.append(reinterpret_cast<const char*>(words.data()), words.size() * 4);
  }
  // Where nothing is aligned.
  static void place(std::string& kept, const std::string& bytes) { kept = "?" + bytes; }
  static const std::byte* begin(const std::string& kept) { return reinterpret_cast<const std::byte*>(kept.data()) + 1; }

  // Zero points packed along the rows: the words of a column stand below each other.
  std::string packed_down(int64_t rows, int bits, CodeLayout layout) const {
    const int64_t groups = matrix_.groups(), words = packed_words(rows, bits, layout);
    std::vector<int32_t> all(static_cast<size_t>(words * groups));
    for (int64_t group = 0; group < groups; ++group) {
      const std::vector<int32_t> column = packed(part(zeros_, group, rows, groups), bits, layout);
      for (int64_t word = 0; word < words; ++word)
        all[static_cast<size_t>(word * groups + group)] = column[static_cast<size_t>(word)];
    }
    std::string bytes;
    append(bytes, all);
    return bytes;
  }

  PackedMatrix matrix_;
  std::vector<uint8_t> codes_, zeros_;
  std::vector<float> scales_;
  std::string codes_bytes_, zeros_bytes_;
};

TEST_P(Bits, GiveCodeMinusZeroPointTimesScale) {
  constexpr int64_t kRows = 45, kColumns = 140;
  for (const CodeLayout layout : {CodeLayout::kDense, CodeLayout::kWholeCodes}) {
    for (const Zeros zeros : {Zeros::kNone, Zeros::kPacked, Zeros::kPlain}) {
      const Matrix matrix(kRows, kColumns, GetParam(), 35, layout, zeros);
      std::vector<float> values(static_cast<size_t>(30 * kColumns));
      dequantize_rows(*matrix, 11, 41, matrix.scales(11), values.data());
      for (int64_t row = 11; row < 41; ++row) {
        for (int64_t column = 0; column < kColumns; ++column) {
          ASSERT_EQ(values[static_cast<size_t>((row - 11) * kColumns + column)], matrix.value(row, column));
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(PackedCodes, Bits, ::testing::Range(1, 9));

}  // namespace
}  // namespace dynslice
