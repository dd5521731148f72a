// A weight matrix on a grid: a small code for every weight, and a scale and an offset for every group of them.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>

#include "dynslice/formats/gguf/gguf_file.h"

namespace dynslice {

// How the weights of a matrix are stored.
struct QuantFormat {
  int bits = 4;                                       // of a code: 2 to 8
  int64_t group_size = 128;                           // consecutive columns that share a scale; 0: the whole row
  bool symmetric = false;                             // no zero points: value = scale * (code - 2^(bits - 1))
  at::ScalarType scale_dtype = at::ScalarType::Half;  // scales are stored, and used, in this precision
  std::optional<GgmlType> block_type = std::nullopt;  // a format of ggml, in the place of all above but `bits`

  bool operator==(const QuantFormat&) const = default;
};

// "4 bits, groups of 128, asymmetric", "Q4_K".
[[nodiscard]] std::string describe(const QuantFormat& format);

// Bits of a weight of a matrix with `columns` columns, scales and zero points included.
[[nodiscard]] double stored_bits(const QuantFormat& format, int64_t columns);

// Whether rounding to nearest is as good as anything: 8 bits, by whatever name.
[[nodiscard]] bool is_fine(const QuantFormat& format);

// Columns whose grid is fitted together: a group, a block, or the whole row.
[[nodiscard]] int64_t grid_unit(const QuantFormat& format, int64_t columns);

// Throws kUsage, naming `what`, when rows of that many columns cannot be stored so: a group or block that does not
// divide them, bits that do not exist.
void check_format(const QuantFormat& format, int64_t columns, const std::string& what);

// Rows are independent of each other.
struct QuantizedMatrix {
  QuantFormat format;
  int64_t columns = 0;
  at::Tensor codes;        // [rows, columns] uint8; undefined for a block type
  at::Tensor scales;       // [rows, groups] fp32, every one a number of scale_dtype; undefined for a block type
  at::Tensor zero_points;  // [rows, groups] uint8: the code that stands for 0; undefined when symmetric
  at::Tensor blocks;       // [rows, bytes] uint8, as ggml lays them out; of a block type only

  [[nodiscard]] int64_t rows() const { return blocks.defined() ? blocks.size(0) : codes.size(0); }
  // A view of rows [first, first + count).
  [[nodiscard]] QuantizedMatrix narrow(int64_t first, int64_t count) const;
  // The values that the codes stand for, [rows, columns] fp32.
  [[nodiscard]] at::Tensor values() const;
};

// Every weight becomes the nearest value on a grid that spans its group: from the smallest to the largest weight, 0
// among them (symmetric: as far on either side as the largest magnitude is). A block type has its own search for the
// grid. weight [rows, columns] fp32 on the CPU. Throws kBadInput when a scale is too large for its precision.
[[nodiscard]] QuantizedMatrix round_to_nearest(const at::Tensor& weight, const QuantFormat& format);

}  // namespace dynslice
