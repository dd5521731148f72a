#include "dynslice/formats/safetensors/packed_weights.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "dynslice/support/check.h"
#include "dynslice/tensor/multiversion.h"

namespace dynslice {
namespace {

constexpr int kWordBits = 32;
// Values that are worth another thread.
constexpr int64_t kGrainValues = int64_t{1} << 15;

uint32_t mask_of(int bits) { return (uint32_t{1} << bits) - 1; }

// Code `index` of a row of which `word(i)` gives the words.
template <typename WordAt>
uint32_t code_at(int64_t index, int bits, CodeLayout layout, const WordAt& word) {
  if (layout == CodeLayout::kWholeCodes) {
    const int64_t in_word = kWordBits / bits;
    return (word(index / in_word) >> (index % in_word * bits)) & mask_of(bits);
  }
  const int64_t bit = index * bits;
  const auto shift = static_cast<int>(bit % kWordBits);
  uint32_t code = word(bit / kWordBits) >> shift;
  if (shift + bits > kWordBits) code |= word(bit / kWordBits + 1) << (kWordBits - shift);
  return code & mask_of(bits);
}

// The way back. Gives all codes or-ed together.
template <int bits>
[[gnu::always_inline]] inline uint32_t pack_blocks(const uint8_t* codes, int64_t blocks, int32_t* words) {
  uint32_t all = 0;
  for (int64_t block = 0; block < blocks; ++block, words += bits, codes += kWordBits) {
    uint32_t packed[bits] = {};
#pragma GCC unroll 32
    for (int i = 0; i < kWordBits; ++i) {
      const int word = i * bits / kWordBits, shift = i * bits % kWordBits;
      const uint32_t code = codes[i];
      all |= code;
      packed[word] |= code << shift;
      if (shift + bits > kWordBits) packed[word + 1] |= code >> (kWordBits - shift);
    }
    for (int i = 0; i < bits; ++i) words[i] = static_cast<int32_t>(packed[i]);
  }
  return all;
}

DYNSLICE_MULTIVERSION
uint32_t pack_whole_blocks(const uint8_t* codes, int bits, int64_t blocks, int32_t* words) {
  switch (bits) {
    case 1:
      return pack_blocks<1>(codes, blocks, words);
    case 2:
      return pack_blocks<2>(codes, blocks, words);
    case 3:
      return pack_blocks<3>(codes, blocks, words);
    case 4:
      return pack_blocks<4>(codes, blocks, words);
    case 5:
      return pack_blocks<5>(codes, blocks, words);
    case 6:
      return pack_blocks<6>(codes, blocks, words);
    case 7:
      return pack_blocks<7>(codes, blocks, words);
    default:
      return pack_blocks<8>(codes, blocks, words);
  }
}

// 32 codes from each `bits` words. Unrolled, all shifts are constants.
template <int bits>
[[gnu::always_inline]] inline void unpack_blocks(const uint32_t* words, int64_t blocks, uint8_t* codes) {
  for (int64_t block = 0; block < blocks; ++block, words += bits, codes += kWordBits) {
#pragma GCC unroll 32
    for (int i = 0; i < kWordBits; ++i) {
      const int word = i * bits / kWordBits, shift = i * bits % kWordBits;
      uint32_t code = words[word] >> shift;
      if (shift + bits > kWordBits) code |= words[word + 1] << (kWordBits - shift);
      codes[i] = static_cast<uint8_t>(code & ((1U << bits) - 1));
    }
  }
}

DYNSLICE_MULTIVERSION
void unpack_whole_blocks(const uint32_t* words, int bits, int64_t blocks, uint8_t* codes) {
  switch (bits) {
    case 1:
      return unpack_blocks<1>(words, blocks, codes);
    case 2:
      return unpack_blocks<2>(words, blocks, codes);
    case 3:
      return unpack_blocks<3>(words, blocks, codes);
    case 4:
      return unpack_blocks<4>(words, blocks, codes);
    case 5:
      return unpack_blocks<5>(words, blocks, codes);
    case 6:
      return unpack_blocks<6>(words, blocks, codes);
    case 7:
      return unpack_blocks<7>(words, blocks, codes);
    default:
      return unpack_blocks<8>(words, blocks, codes);
  }
}

void unpack_row(const uint32_t* words, int bits, CodeLayout layout, int64_t count, uint8_t* codes) {
  const int64_t blocks = layout == CodeLayout::kDense ? count / kWordBits : 0;
  unpack_whole_blocks(words, bits, blocks, codes);
  const auto word = [words](int64_t i) { return words[i]; };
  for (int64_t i = blocks * kWordBits; i < count; ++i) codes[i] = static_cast<uint8_t>(code_at(i, bits, layout, word));
}

DYNSLICE_MULTIVERSION
void scale_row(const uint8_t* codes, const int32_t* zeros, const float* scales, int64_t groups, int64_t group_size,
               float* values) {
  for (int64_t group = 0; group < groups; ++group, codes += group_size, values += group_size) {
    const int32_t zero = zeros[group];
    const float scale = scales[group];
#pragma omp simd
    for (int64_t i = 0; i < group_size; ++i) {
      values[i] = static_cast<float>(static_cast<int32_t>(codes[i]) - zero) * scale;
    }
  }
}

// The codes that stand for 0 in a row's groups.
void read_zeros(const PackedMatrix& matrix, int64_t row, std::vector<int32_t>& zeros) {
  const int64_t groups = matrix.groups();
  const int32_t middle = 1 << (matrix.bits - 1);
  for (int64_t group = 0; group < groups; ++group) {
    int32_t zero = middle;
    if (matrix.packed_zeros != nullptr) {
      zero = static_cast<int32_t>(code_at(row, matrix.bits, matrix.layout, [&](int64_t word) {
        uint32_t value = 0;
        std::memcpy(&value, matrix.packed_zeros + (word * groups + group) * 4, sizeof value);
        return value;
      }));
    } else if (matrix.plain_zeros != nullptr) {
      zero += static_cast<int8_t>(matrix.plain_zeros[row * groups + group]);
    }
    zeros[static_cast<size_t>(group)] = zero;
  }
}

}  // namespace

int64_t packed_words(int64_t codes, int bits, CodeLayout layout) {
  if (layout == CodeLayout::kWholeCodes) return (codes + kWordBits / bits - 1) / (kWordBits / bits);
  // Of whole blocks and of the rest, so that no product overflows before its parts do.
  return codes / kWordBits * bits + (codes % kWordBits * bits + kWordBits - 1) / kWordBits;
}

void pack_codes(std::span<const uint8_t> codes, int bits, std::span<int32_t> words) {
  DYNSLICE_CHECK(1 <= bits && bits <= 8 && static_cast<int64_t>(words.size()) == packed_words(std::ssize(codes), bits),
                 "pack_codes: sizes do not fit");
  const int64_t blocks = std::ssize(codes) / kWordBits;
  uint32_t all = pack_whole_blocks(codes.data(), bits, blocks, words.data());
  uint64_t pending = 0;
  int filled = 0;
  auto word = words.begin() + blocks * bits;
  for (const uint8_t code : codes.subspan(static_cast<size_t>(blocks * kWordBits))) {
    all |= code;
    pending |= uint64_t{code} << filled;
    filled += bits;
    if (filled < kWordBits) continue;
    *word++ = static_cast<int32_t>(static_cast<uint32_t>(pending));
    pending >>= kWordBits;
    filled -= kWordBits;
  }
  if (filled > 0) *word = static_cast<int32_t>(static_cast<uint32_t>(pending));
  DYNSLICE_CHECK(all <= mask_of(bits), "pack_codes: a code has too many bits");
}

void unpack_codes(std::span<const int32_t> words, int bits, std::span<uint8_t> codes, CodeLayout layout) {
  DYNSLICE_CHECK(
      1 <= bits && bits <= 8 && static_cast<int64_t>(words.size()) == packed_words(std::ssize(codes), bits, layout),
      "unpack_codes: sizes do not fit");
  unpack_row(reinterpret_cast<const uint32_t*>(words.data()), bits, layout, std::ssize(codes), codes.data());
}

void dequantize_rows(const PackedMatrix& matrix, int64_t begin, int64_t end, const float* scales, float* values) {
  const int64_t row_words = packed_words(matrix.columns, matrix.bits, matrix.layout);
  const int64_t groups = matrix.groups();
  at::parallel_for(begin, end, std::max<int64_t>(1, kGrainValues / matrix.columns), [&](int64_t from, int64_t to) {
    std::vector<uint32_t> words(static_cast<size_t>(row_words));
    std::vector<uint8_t> codes(static_cast<size_t>(matrix.columns));
    std::vector<int32_t> zeros(static_cast<size_t>(groups));
    for (int64_t row = from; row < to; ++row) {
      std::memcpy(words.data(), matrix.codes + row * row_words * 4, words.size() * 4);
      unpack_row(words.data(), matrix.bits, matrix.layout, matrix.columns, codes.data());
      read_zeros(matrix, row, zeros);
      scale_row(codes.data(), zeros.data(), scales + (row - begin) * groups, groups, matrix.group_size,
                values + (row - begin) * matrix.columns);
    }
  });
}

}  // namespace dynslice
