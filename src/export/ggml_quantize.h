// Floats turned into ggml's block formats, bit for bit as ggml's reference does.
#pragma once

#include <cstddef>
#include <span>

#include "dynslice/support/gguf_file.h"

namespace dynslice {

// Encodes whole blocks of F32, F16, BF16 or Q8_0. False when a value is too large for the type (F16, and the scales of
// Q8_0). Throws std::logic_error when the sizes do not fit each other or the type is another.
bool quantize(GgmlType type, std::span<const float> values, std::span<std::byte> blocks);

}  // namespace dynslice
