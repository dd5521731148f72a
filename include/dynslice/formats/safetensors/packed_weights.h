// Integer codes of 1 to 8 bits in 32-bit words, as compressed-tensors packs them, and the weights that they stand for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace dynslice {

enum class CodeLayout {
  kDense,  // code i begins at bit i * bits of its row: 32 codes in `bits` words (compressed-tensors 0.20 and newer)
  kWholeCodes,  // 32 / bits codes, rounded down, in every word: what older versions made of 3, 5, 6 and 7 bits
};

// Words that a row of codes takes.
[[nodiscard]] int64_t packed_words(int64_t codes, int bits, CodeLayout layout = CodeLayout::kDense);

// Packs one row of codes, each below 2^bits, densely; unused bits at its end are 0. Throws std::logic_error when a code
// is larger, or `words` are not packed_words().
void pack_codes(std::span<const uint8_t> codes, int bits, std::span<int32_t> words);

// The way back, from either layout. Throws std::logic_error when the sizes do not fit each other.
void unpack_codes(std::span<const int32_t> words, int bits, std::span<uint8_t> codes,
                  CodeLayout layout = CodeLayout::kDense);

// A packed matrix [rows, columns] where it lies in a file; its sizes have been checked. None of it needs alignment.
struct PackedMatrix {
  int64_t rows = 0, columns = 0;
  int bits = 4;
  CodeLayout layout = CodeLayout::kDense;
  int64_t group_size = 0;                   // a divisor of columns
  const std::byte* codes = nullptr;         // int32 [rows, packed_words(columns)]
  const std::byte* packed_zeros = nullptr;  // int32 [packed_words(rows), groups]: packed along the rows; or null
  const std::byte* plain_zeros = nullptr;   // int8 [rows, groups]; or null. Neither: the zero point is the middle code
  [[nodiscard]] int64_t groups() const { return columns / group_size; }
};

// Rows [begin, end) into `values`: (code - zero point) * scale in fp32, `scales` [end - begin, groups] being those of
// these rows. With scales that came from bf16 or fp16 the products are exact, so that rounding them to the scales'
// dtype gives what compressed-tensors, which computes in that dtype, gives. On all threads.
void dequantize_rows(const PackedMatrix& matrix, int64_t begin, int64_t end, const float* scales, float* values);

}  // namespace dynslice
