#include "formats/gguf/ggml_block_bytes.h"

#include <c10/util/Half.h>

#include <algorithm>

#include "dynslice/support/check.h"

namespace dynslice::ggml {
namespace {

void put_half(float value, uint8_t* out) {
  const uint16_t half = c10::Half(value).x;
  out[0] = static_cast<uint8_t>(half & 0xFF);
  out[1] = static_cast<uint8_t>(half >> 8);
}

void put_q2_scales(const BlockGrid& grid, uint8_t* out) {
  for (size_t g = 0; g < 16; ++g)
    out[g] = static_cast<uint8_t>(grid.scale_multiple[g] | (grid.offset_multiple[g] << 4));
}

void put_q3_scales(const BlockGrid& grid, uint8_t* out) {
  std::fill_n(out, 12, uint8_t{0});
  for (size_t g = 0; g < 16; ++g) {
    const int scale = grid.scale_multiple[g] + 32;
    out[g % 8] = static_cast<uint8_t>(out[g % 8] | ((scale & 0xF) << (g / 8 * 4)));
    out[8 + g % 4] = static_cast<uint8_t>(out[8 + g % 4] | ((scale >> 4) << (g / 4 * 2)));
  }
}

void put_k_scales(const BlockGrid& grid, uint8_t* out) {
  for (size_t g = 0; g < 4; ++g) {
    const int scale = grid.scale_multiple[g], minimum = grid.offset_multiple[g];
    const int later_scale = grid.scale_multiple[g + 4], later_minimum = grid.offset_multiple[g + 4];
    out[g] = static_cast<uint8_t>(scale | ((later_scale >> 4) << 6));
    out[g + 4] = static_cast<uint8_t>(minimum | ((later_minimum >> 4) << 6));
    out[g + 8] = static_cast<uint8_t>((later_scale & 0xF) | ((later_minimum & 0xF) << 4));
  }
}

// 32 codes: low nibbles of the bytes are those of the first 16.
void put_nibbles(const uint8_t* codes, uint8_t* out) {
  for (size_t i = 0; i < 16; ++i) out[i] = static_cast<uint8_t>((codes[i] & 0xF) | ((codes[i + 16] & 0xF) << 4));
}

// The fifth bits of 32 codes, one word.
void put_fifth_bits(const uint8_t* codes, uint8_t* out) {
  for (size_t byte = 0; byte < 4; ++byte) {
    int bits = 0;
    for (size_t i = 0; i < 8; ++i) bits |= ((codes[byte * 8 + i] >> 4) & 1) << i;
    out[byte] = static_cast<uint8_t>(bits);
  }
}

// The lowest two bits of 256 codes, of Q2_K and Q3_K.
void put_pairs(const uint8_t* codes, uint8_t* out) {
  for (size_t half = 0; half < 2; ++half) {
    const uint8_t* c = codes + half * 128;
    for (size_t i = 0; i < 32; ++i) {
      out[half * 32 + i] =
          static_cast<uint8_t>((c[i] & 3) | ((c[i + 32] & 3) << 2) | ((c[i + 64] & 3) << 4) | ((c[i + 96] & 3) << 6));
    }
  }
}

// One bit of every code: byte i has that of the codes i, 32 + i, 64 + i ...
void put_plane(const uint8_t* codes, int bit, uint8_t* out) {
  for (size_t i = 0; i < 32; ++i) {
    int bits = 0;
    for (size_t run = 0; run < 8; ++run) bits |= ((codes[run * 32 + i] >> bit) & 1) << run;
    out[i] = static_cast<uint8_t>(bits);
  }
}

// Low nibbles of Q4_K and Q5_K.
void put_k_nibbles(const uint8_t* codes, uint8_t* out) {
  for (size_t pair = 0; pair < 4; ++pair) {
    const uint8_t* c = codes + pair * 64;
    for (size_t i = 0; i < 32; ++i) out[pair * 32 + i] = static_cast<uint8_t>((c[i] & 0xF) | ((c[i + 32] & 0xF) << 4));
  }
}

void put_q6_codes(const uint8_t* codes, uint8_t* low, uint8_t* high) {
  for (size_t half = 0; half < 2; ++half) {
    const uint8_t* c = codes + half * 128;
    for (size_t i = 0; i < 32; ++i) {
      low[half * 64 + i] = static_cast<uint8_t>((c[i] & 0xF) | ((c[i + 64] & 0xF) << 4));
      low[half * 64 + 32 + i] = static_cast<uint8_t>((c[i + 32] & 0xF) | ((c[i + 96] & 0xF) << 4));
      high[half * 32 + i] = static_cast<uint8_t>((c[i] >> 4) | ((c[i + 32] >> 4) << 2) | ((c[i + 64] >> 4) << 4) |
                                                 ((c[i + 96] >> 4) << 6));
    }
  }
}

}  // namespace

void put_scales(GgmlType type, const BlockGrid& grid, uint8_t* block) {
  switch (type) {
    case GgmlType::kQ4_1:
    case GgmlType::kQ5_1:
      put_half(grid.offset, block + 2);
      [[fallthrough]];
    case GgmlType::kQ4_0:
    case GgmlType::kQ5_0:
    case GgmlType::kQ8_0:
      put_half(grid.scale, block);
      return;
    case GgmlType::kQ2_K:
      put_q2_scales(grid, block);
      put_half(grid.scale, block + 80);
      put_half(grid.offset, block + 82);
      return;
    case GgmlType::kQ3_K:
      put_q3_scales(grid, block + 96);
      put_half(grid.scale, block + 108);
      return;
    case GgmlType::kQ4_K:
    case GgmlType::kQ5_K:
      put_half(grid.scale, block);
      put_half(grid.offset, block + 2);
      put_k_scales(grid, block + 4);
      return;
    case GgmlType::kQ6_K:
      for (size_t g = 0; g < 16; ++g) block[192 + g] = static_cast<uint8_t>(grid.scale_multiple[g]);
      put_half(grid.scale, block + 208);
      return;
    case GgmlType::kF32:
    case GgmlType::kF16:
    case GgmlType::kBF16:
      break;
  }
  throw_broken_invariant("put_scales: no quantized type");
}

void put_codes(GgmlType type, const uint8_t* codes, uint8_t* block) {
  switch (type) {
    case GgmlType::kQ4_0:
      return put_nibbles(codes, block + 2);
    case GgmlType::kQ4_1:
      return put_nibbles(codes, block + 4);
    case GgmlType::kQ5_0:
      put_fifth_bits(codes, block + 2);
      return put_nibbles(codes, block + 6);
    case GgmlType::kQ5_1:
      put_fifth_bits(codes, block + 4);
      return put_nibbles(codes, block + 8);
    case GgmlType::kQ8_0:
      for (size_t i = 0; i < 32; ++i) block[2 + i] = static_cast<uint8_t>(codes[i] - 127);
      return;
    case GgmlType::kQ2_K:
      return put_pairs(codes, block + 16);
    case GgmlType::kQ3_K:
      put_plane(codes, 2, block);
      return put_pairs(codes, block + 32);
    case GgmlType::kQ4_K:
      return put_k_nibbles(codes, block + 16);
    case GgmlType::kQ5_K:
      put_plane(codes, 4, block + 16);
      return put_k_nibbles(codes, block + 48);
    case GgmlType::kQ6_K:
      return put_q6_codes(codes, block, block + 128);
    case GgmlType::kF32:
    case GgmlType::kF16:
    case GgmlType::kBF16:
      break;
  }
  throw_broken_invariant("put_codes: no quantized type");
}

}  // namespace dynslice::ggml
