// Floats turned into ggml's block formats: first the grid of values that a block can hold, then a code for each value.
// The two steps are apart because a quantizer with error feedback chooses the codes itself.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "dynslice/formats/gguf/gguf_file.h"

namespace dynslice {

// Every value of a block is scale * code + offset, with scale and offset of its group.
struct GgmlGrid {
  int64_t block_values;
  int64_t group_values;
  int32_t codes;  // how many there are: 0 ... codes - 1
};

// Whether the format has codes; F32, F16 and BF16 have not.
[[nodiscard]] bool is_quantized(GgmlType type);

// `wanted`, or what stands in for it where rows of so many columns are not whole blocks of it: for a K format one with
// blocks of 32 and as many bits or more, F16 where not even these fit. The choices are llama-quantize's.
[[nodiscard]] GgmlType type_for_rows(GgmlType wanted, int64_t columns);

// Of a quantized type; throws std::logic_error for another.
[[nodiscard]] GgmlGrid ggml_grid(GgmlType type);

// Chooses the grid of one block for values [block_values], so that rounding them to the nearest grid value makes a
// small Σ w (v - v̂)²; `weights` [block_values] are finite and not negative, or empty for all 1. Writes the scale fields
// of `block` [format.bytes], clears its codes, and fills `scales` and `offsets` [block_values / group_values] as a
// decoder computes them: scale * code + offset in fp32 is bit for bit what `dequantize` gives for that code, except
// that a zero may differ in sign. A scale may be negative, or 0 where one value fits the group.
// False, with zeros everywhere, when a scale or a value is too large for half precision, or a value is no number. The
// result does not depend on the machine's instruction set.
[[nodiscard]] bool fit_block(GgmlType type, std::span<const float> values, std::span<const float> weights,
                             std::span<std::byte> block, std::span<float> scales, std::span<float> offsets);

// Puts codes [block_values], each below `codes`, into a block and leaves its scales as they are.
void store_codes(GgmlType type, std::span<const uint8_t> codes, std::span<std::byte> block);

// Encodes whole blocks with the nearest codes; floats of F32, F16 and BF16 one by one. False when a value is too large
// for the type, as fit_block says it. Throws std::logic_error when the sizes do not fit each other.
[[nodiscard]] bool quantize(GgmlType type, std::span<const float> values, std::span<std::byte> blocks);

}  // namespace dynslice
