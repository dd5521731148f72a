// ggml's types as they are named on the command line: in small letters.
#pragma once

#include <ATen/core/Tensor.h>

#include <span>
#include <string>

#include "dynslice/formats/gguf/gguf_file.h"

namespace dynslice {

// "q4_k".
std::string ggml_type_name(GgmlType type);
// The type of that name, in letters of any case. Throws kUsage, naming `option`, when it is not among `types`.
GgmlType parse_ggml_type(const std::string& option, const std::string& name, std::span<const GgmlType> types);
// What weights of a floating-point dtype are in a GGUF file.
GgmlType ggml_float_type(at::ScalarType dtype);

}  // namespace dynslice
