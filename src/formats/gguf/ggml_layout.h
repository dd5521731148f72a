// What tells ggml's block formats apart when they are written, and the grid of a block before it is bytes.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>

#include "dynslice/formats/gguf/ggml_quantize.h"

namespace dynslice::ggml {

constexpr int kMostValues = 256, kMostGroups = 16;  // of a block

// Adding it to a number of at most 22 bits rounds that to the nearest integer, which is then found in its low bits.
constexpr float kRounder = 0x1.8p23F;

// The nearest of the integers `lowest` to `highest`; of anything, infinities included. Comparing bit patterns serves,
// because positive floats are ordered like their bits and negative ones have negative patterns.
inline float nearest_level(float x, float lowest, float highest) {
  int32_t bits = std::bit_cast<int32_t>(x + kRounder);
  bits = std::max(bits, std::bit_cast<int32_t>(lowest + kRounder));
  bits = std::min(bits, std::bit_cast<int32_t>(highest + kRounder));
  return std::bit_cast<float>(bits) - kRounder;
}

// What tells the formats apart when a grid is fitted. A level is a code counted from the one that means zero.
struct Layout {
  GgmlGrid grid;
  int zero;                               // the code of zero in formats without offsets; 0 in those with
  bool has_offset;                        // values are scale * code + offset, else scale * (code - zero)
  int lowest_multiple, highest_multiple;  // what a K format multiplies its super-scales by; 0, 0 in the others
  float finest, coarsest;                 // steps tried: the largest value (or the range) holds so many of them

  bool is_k() const { return highest_multiple > 0; }
  float lowest() const { return static_cast<float>(-zero); }
  float highest() const { return static_cast<float>(grid.codes - 1 - zero); }
  int groups() const { return static_cast<int>(grid.block_values / grid.group_values); }
};

// Throws std::logic_error for a type without codes.
const Layout& layout_of(GgmlType type);

// The grid of a block before it is written: what the decoder multiplies.
struct BlockGrid {
  float scale = 0, offset = 0;  // Of the block. K formats with offsets subtract theirs: it is the super-minimum.
  std::array<int, kMostGroups> scale_multiple{}, offset_multiple{};
};

}  // namespace dynslice::ggml
