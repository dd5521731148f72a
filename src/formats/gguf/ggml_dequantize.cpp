#include "dynslice/formats/gguf/ggml_dequantize.h"

#include <array>
#include <bit>
#include <cstring>

#include "dynslice/support/check.h"

// Why this is bit-exact whatever the compiler does with a * b + c: a scale has 11 significant bits, a sub-scale at
// most 7, a quantum at most 6, so every product fits the 24 bits of a float and only the last sum is rounded.

namespace dynslice {
namespace {

uint16_t read_u16(const uint8_t* p) { return static_cast<uint16_t>(p[0] | (p[1] << 8)); }

uint32_t read_u32(const uint8_t* p) {
  uint32_t value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

float read_half(const uint8_t* p) { return half_to_float(read_u16(p)); }

void decode_f32(const uint8_t* block, float* out) { std::memcpy(out, block, sizeof *out); }
void decode_f16(const uint8_t* block, float* out) { *out = read_half(block); }
void decode_bf16(const uint8_t* block, float* out) {
  *out = std::bit_cast<float>(static_cast<uint32_t>(read_u16(block)) << 16);
}

// 32 values: scale, 16 bytes whose low nibbles are values 0..15 and high nibbles 16..31.
void decode_q4_0(const uint8_t* block, float* out) {
  const float d = read_half(block);
  for (int i = 0; i < 16; ++i) {
    const int q = block[2 + i];
    out[i] = d * static_cast<float>((q & 0xF) - 8);
    out[i + 16] = d * static_cast<float>((q >> 4) - 8);
  }
}

// As Q4_0 with a minimum after the scale.
void decode_q4_1(const uint8_t* block, float* out) {
  const float d = read_half(block), m = read_half(block + 2);
  for (int i = 0; i < 16; ++i) {
    const int q = block[4 + i];
    out[i] = d * static_cast<float>(q & 0xF) + m;
    out[i + 16] = d * static_cast<float>(q >> 4) + m;
  }
}

// As Q4_0; bit i of the 32-bit word after the scale is the fifth bit of value i.
void decode_q5_0(const uint8_t* block, float* out) {
  const float d = read_half(block);
  const uint32_t high = read_u32(block + 2);
  for (int i = 0; i < 16; ++i) {
    const int q = block[6 + i];
    const int low_bit = static_cast<int>((high >> i) & 1U), high_bit = static_cast<int>((high >> (i + 16)) & 1U);
    out[i] = d * static_cast<float>(((q & 0xF) | (low_bit << 4)) - 16);
    out[i + 16] = d * static_cast<float>(((q >> 4) | (high_bit << 4)) - 16);
  }
}

void decode_q5_1(const uint8_t* block, float* out) {
  const float d = read_half(block), m = read_half(block + 2);
  const uint32_t high = read_u32(block + 4);
  for (int i = 0; i < 16; ++i) {
    const int q = block[8 + i];
    const int low_bit = static_cast<int>((high >> i) & 1U), high_bit = static_cast<int>((high >> (i + 16)) & 1U);
    out[i] = d * static_cast<float>((q & 0xF) | (low_bit << 4)) + m;
    out[i + 16] = d * static_cast<float>((q >> 4) | (high_bit << 4)) + m;
  }
}

void decode_q8_0(const uint8_t* block, float* out) {
  const float d = read_half(block);
  for (int i = 0; i < 32; ++i) out[i] = static_cast<float>(static_cast<int8_t>(block[2 + i])) * d;
}

// 16 groups of 16: scale (low) and minimum (high nibble) a byte, then 2-bit values, then the two super-scales. A run
// of 32 bytes holds four runs of 32 values, one in each pair of bits.
void decode_q2_k(const uint8_t* block, float* out) {
  const uint8_t* scales = block;
  const uint8_t* quants = block + 16;
  const float d = read_half(block + 80), dmin = read_half(block + 82);
  for (int group = 0; group < 16; ++group) {
    const float scale = d * static_cast<float>(scales[group] & 0xF);
    const float minimum = dmin * static_cast<float>(scales[group] >> 4);
    const uint8_t* q = quants + group / 8 * 32 + group % 2 * 16;
    const int shift = group % 8 / 2 * 2;
    for (int i = 0; i < 16; ++i) out[group * 16 + i] = scale * static_cast<float>((q[i] >> shift) & 3) - minimum;
  }
}

// Sixteen 6-bit scales in 12 bytes: nibbles of the first eight, pairs of bits of the last four.
std::array<int, 16> unpack_q3_scales(const uint8_t* packed) {
  std::array<int, 16> scales{};
  for (int i = 0; i < 16; ++i) {
    const int low = (packed[i % 8] >> (i / 8 * 4)) & 0xF;
    const int high = (packed[8 + i % 4] >> (i / 4 * 2)) & 3;
    scales[static_cast<size_t>(i)] = (low | (high << 4)) - 32;
  }
  return scales;
}

// Bits of the mask, 2-bit values as in Q2_K, scales, super-scale. A mask bit of 0 subtracts 4.
void decode_q3_k(const uint8_t* block, float* out) {
  const uint8_t* mask = block;
  const uint8_t* quants = block + 32;
  const std::array<int, 16> scales = unpack_q3_scales(block + 96);
  const float d = read_half(block + 108);
  for (int group = 0; group < 16; ++group) {
    const float scale = d * static_cast<float>(scales[static_cast<size_t>(group)]);
    const uint8_t* q = quants + group / 8 * 32 + group % 2 * 16;
    const uint8_t* m = mask + group % 2 * 16;
    const int shift = group % 8 / 2 * 2, mask_bit = group / 2;
    for (int i = 0; i < 16; ++i) {
      const int value = ((q[i] >> shift) & 3) - (((m[i] >> mask_bit) & 1) != 0 ? 0 : 4);
      out[group * 16 + i] = scale * static_cast<float>(value);
    }
  }
}

// Scale and minimum of one of the eight groups of a Q4_K or Q5_K block: 6 bits each, in 12 bytes.
struct ScaleAndMinimum {
  int scale;
  int minimum;
};

ScaleAndMinimum unpack_k_scale(const uint8_t* packed, int group) {
  if (group < 4) return {packed[group] & 63, packed[group + 4] & 63};
  return {(packed[group + 4] & 0xF) | ((packed[group - 4] >> 6) << 4),
          (packed[group + 4] >> 4) | ((packed[group] >> 6) << 4)};
}

// Two super-scales, scales, then 32 bytes for every two groups of 32 values: low nibbles, high nibbles.
void decode_q4_k(const uint8_t* block, float* out) {
  const float d = read_half(block), dmin = read_half(block + 2);
  for (int group = 0; group < 8; ++group) {
    const ScaleAndMinimum packed = unpack_k_scale(block + 4, group);
    const float scale = d * static_cast<float>(packed.scale), minimum = dmin * static_cast<float>(packed.minimum);
    const uint8_t* q = block + 16 + group / 2 * 32;
    const int shift = group % 2 * 4;
    for (int i = 0; i < 32; ++i) out[group * 32 + i] = scale * static_cast<float>((q[i] >> shift) & 0xF) - minimum;
  }
}

// As Q4_K; bit g of the 32 bytes before the nibbles is the fifth bit of the values of group g.
void decode_q5_k(const uint8_t* block, float* out) {
  const float d = read_half(block), dmin = read_half(block + 2);
  const uint8_t* high = block + 16;
  for (int group = 0; group < 8; ++group) {
    const ScaleAndMinimum packed = unpack_k_scale(block + 4, group);
    const float scale = d * static_cast<float>(packed.scale), minimum = dmin * static_cast<float>(packed.minimum);
    const uint8_t* q = block + 48 + group / 2 * 32;
    const int shift = group % 2 * 4;
    for (int i = 0; i < 32; ++i) {
      const int value = ((q[i] >> shift) & 0xF) | (((high[i] >> group) & 1) << 4);
      out[group * 32 + i] = scale * static_cast<float>(value) - minimum;
    }
  }
}

// Low nibbles (64 bytes for every 128 values), high pairs of bits (32 bytes for every 128), 16 signed scales.
void decode_q6_k(const uint8_t* block, float* out) {
  const uint8_t* low = block;
  const uint8_t* high = block + 128;
  const uint8_t* scales = block + 192;
  const float d = read_half(block + 208);
  for (int group = 0; group < 16; ++group) {
    const float scale = d * static_cast<float>(static_cast<int8_t>(scales[group]));
    const int run = group / 2 % 4;  // which 32 of the 128 values
    const uint8_t* l = low + group / 8 * 64 + run % 2 * 32 + group % 2 * 16;
    const uint8_t* h = high + group / 8 * 32 + group % 2 * 16;
    const int low_shift = run / 2 * 4, high_shift = run * 2;
    for (int i = 0; i < 16; ++i) {
      const int value = (((l[i] >> low_shift) & 0xF) | (((h[i] >> high_shift) & 3) << 4)) - 32;
      out[group * 16 + i] = scale * static_cast<float>(value);
    }
  }
}

using Decoder = void (*)(const uint8_t*, size_t, const GgmlFormat&, float*);

// The loop over blocks, one for each type so that the compiler sees what one block takes.
template <void (*kDecodeBlock)(const uint8_t*, float*)>
void decode_blocks(const uint8_t* blocks, size_t count, const GgmlFormat& format, float* out) {
  for (size_t i = 0; i < count; ++i) {
    kDecodeBlock(blocks + i * static_cast<size_t>(format.bytes), out + i * static_cast<size_t>(format.values));
  }
}

Decoder decoder_of(GgmlType type) {
  switch (type) {
    case GgmlType::kF32:
      return decode_blocks<decode_f32>;
    case GgmlType::kF16:
      return decode_blocks<decode_f16>;
    case GgmlType::kBF16:
      return decode_blocks<decode_bf16>;
    case GgmlType::kQ4_0:
      return decode_blocks<decode_q4_0>;
    case GgmlType::kQ4_1:
      return decode_blocks<decode_q4_1>;
    case GgmlType::kQ5_0:
      return decode_blocks<decode_q5_0>;
    case GgmlType::kQ5_1:
      return decode_blocks<decode_q5_1>;
    case GgmlType::kQ8_0:
      return decode_blocks<decode_q8_0>;
    case GgmlType::kQ2_K:
      return decode_blocks<decode_q2_k>;
    case GgmlType::kQ3_K:
      return decode_blocks<decode_q3_k>;
    case GgmlType::kQ4_K:
      return decode_blocks<decode_q4_k>;
    case GgmlType::kQ5_K:
      return decode_blocks<decode_q5_k>;
    case GgmlType::kQ6_K:
      return decode_blocks<decode_q6_k>;
  }
  throw_broken_invariant("dequantize: a type that no file can have");
}

}  // namespace

float half_to_float(uint16_t half) {
  const uint32_t sign = (half & 0x8000U) << 16, exponent = (half >> 10) & 31U, fraction = half & 0x3FFU;
  if (exponent == 0) {  // zero and subnormals: fraction · 2^-24, which a float holds as a normal number
    const float magnitude = static_cast<float>(fraction) * 0x1p-24F;
    return std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | sign);
  }
  const uint32_t wide_exponent = exponent == 31 ? 255 : exponent + 112;
  return std::bit_cast<float>(sign | (wide_exponent << 23) | (fraction << 13));
}

void dequantize(GgmlType type, std::span<const std::byte> blocks, std::span<float> values) {
  const GgmlFormat& format = ggml_format(type);
  const auto block_bytes = static_cast<size_t>(format.bytes), block_values = static_cast<size_t>(format.values);
  const size_t count = blocks.size() / block_bytes;
  DYNSLICE_CHECK(count * block_bytes == blocks.size() && count * block_values == values.size(),
                 "dequantize: the bytes are not the blocks of these values");
  if (type == GgmlType::kF32) {
    if (count > 0) std::memcpy(values.data(), blocks.data(), blocks.size());
    return;
  }
  decoder_of(type)(reinterpret_cast<const uint8_t*>(blocks.data()), count, format, values.data());
}

}  // namespace dynslice
