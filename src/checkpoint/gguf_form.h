// How llama.cpp's files have the tensors of a gated delta net: value heads in another order, and the rate of forgetting
// itself, not its logarithm.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "dynslice/model/config.h"

namespace dynslice {

// Of one tensor of ours. Our value heads are grouped by the key head that they share, the file's are in turns: the
// first of every key head, then the second of every key head, and so on.
struct GgufForm {
  std::vector<int64_t> rows;          // of the file: which row of ours each is; empty: as ours
  std::vector<int64_t> column_parts;  // the same of parts of every row, all of `part_width` columns
  int64_t part_width = 0;
  bool is_rate = false;  // -exp(x) of x
  [[nodiscard]] bool is_ours() const { return rows.empty() && column_parts.empty() && !is_rate; }
};
[[nodiscard]] GgufForm gguf_form(const ModelConfig& config, const std::string& name);

// Which of `order` is 0, 1, 2, ...
[[nodiscard]] std::vector<int64_t> inverse_order(const std::vector<int64_t>& order);

// Parts of the rows [rows, width] in that order, whatever a part of the width is: columns, or their bytes.
[[nodiscard]] at::Tensor reordered_columns(const at::Tensor& rows, const std::vector<int64_t>& order);

}  // namespace dynslice
