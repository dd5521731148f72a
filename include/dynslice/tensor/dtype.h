// The names of number formats: one table of what options, config.json, and the files of tensors call them.
#pragma once

#include <c10/core/ScalarType.h>

#include <optional>
#include <string>
#include <string_view>

namespace dynslice {

// "fp32", as options and results have it; "unknown" for a format that no option has.
[[nodiscard]] std::string dtype_name(at::ScalarType dtype);
// "float32", as config.json has it; "unknown" for a format that no model is in.
[[nodiscard]] std::string torch_dtype_name(at::ScalarType dtype);
// "F32", as safetensors files, GGUF files and journals have it. Throws std::logic_error for a format without a name.
[[nodiscard]] std::string file_dtype_name(at::ScalarType dtype);

// The format that a file calls so; nothing for an unknown name.
[[nodiscard]] std::optional<at::ScalarType> dtype_of_file(std::string_view name);
// The same of the formats that weights are loaded from as they are: F32, BF16 and F16.
[[nodiscard]] std::optional<at::ScalarType> weight_dtype_of_file(std::string_view name);
// The format that weights are computed with, or written in, that an option calls so: fp32, bf16 or fp16.
[[nodiscard]] std::optional<at::ScalarType> weight_dtype_of_option(std::string_view name);

}  // namespace dynslice
