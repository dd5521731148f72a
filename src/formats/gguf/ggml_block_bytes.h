// Blocks as bytes; how they are laid out is described in ggml_dequantize.cpp.
#pragma once

#include <cstdint>

#include "formats/gguf/ggml_layout.h"

namespace dynslice::ggml {

// Writes the scale fields of a block, and nothing else.
void put_scales(GgmlType type, const BlockGrid& grid, uint8_t* block);
// Writes the codes of a whole block, and nothing else.
void put_codes(GgmlType type, const uint8_t* codes, uint8_t* block);

}  // namespace dynslice::ggml
