// What `quantize` can be asked for: every choice is a row. Nothing here needs LibTorch.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "dynslice/support/choices.h"

namespace dynslice {

enum class QuantizeMethod { kGptq, kRtn };
inline constexpr std::array kQuantizeMethods = {
    Choice{QuantizeMethod::kGptq, "gptq",
           "every rounding is made up for by the weights still to be rounded, on calibration text"},
    Choice{QuantizeMethod::kRtn, "rtn", "each weight to the nearest value, which needs no text"}};
constexpr const auto& choices(QuantizeMethod) { return kQuantizeMethods; }

// Weights of a row that share a scale.
enum class GroupSize { kAuto, k128, k64, k32, kRow };
struct GroupSizeRow {
  GroupSize value;
  std::string_view name, meaning;
  int64_t weights;  // 0: auto, and the whole row
};
inline constexpr std::array kGroupSizes = {
    GroupSizeRow{GroupSize::kAuto, "auto",
                 "the largest of 128, 64 and 32 that divides all rows, else of each width, else the row", 0},
    GroupSizeRow{GroupSize::k128, "128", "", 128}, GroupSizeRow{GroupSize::k64, "64", "", 64},
    GroupSizeRow{GroupSize::k32, "32", "", 32}, GroupSizeRow{GroupSize::kRow, "row", "the whole row", 0}};
constexpr const auto& choices(GroupSize) { return kGroupSizes; }

}  // namespace dynslice
