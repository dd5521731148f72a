// ggml's block formats turned into 32-bit floats, bit for bit as ggml's reference and the gguf Python package do.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "dynslice/formats/gguf/gguf_file.h"

namespace dynslice {

// IEEE 754 half precision to single precision; exact, subnormals included.
[[nodiscard]] float half_to_float(uint16_t half);

// Decodes whole blocks: blocks.size() / format.bytes blocks give values.size() values. Needs no alignment.
// Throws std::logic_error when the sizes do not fit each other.
void dequantize(GgmlType type, std::span<const std::byte> blocks, std::span<float> values);

}  // namespace dynslice
