// What `quantize` can be asked for: every choice is a row. Nothing here needs LibTorch.
#pragma once

#include <array>

#include "dynslice/support/choices.h"

namespace dynslice {

enum class QuantizeMethod { kGptq, kRtn };
inline constexpr std::array kQuantizeMethods = {
    Choice{QuantizeMethod::kGptq, "gptq",
           "every rounding is made up for by the weights still to be rounded, on calibration text"},
    Choice{QuantizeMethod::kRtn, "rtn", "each weight to the nearest value, which needs no text"}};
constexpr const auto& choices(QuantizeMethod) { return kQuantizeMethods; }

}  // namespace dynslice
