// The grids that weights are rounded to, group by group: how they are chosen, and how codes are kept.
#pragma once

#include <cstdint>
#include <span>

#include "dynslice/quantize/quantized_matrix.h"

namespace dynslice {

// What a unit of columns (grid_unit) is divided into.
struct GridShape {
  int64_t unit = 0;   // columns whose grid is fitted together
  int64_t group = 0;  // columns that share scale and offset
  int32_t levels = 0;
  int64_t groups() const { return unit / group; }
};
GridShape grid_shape(const QuantFormat& format, int64_t columns);

// A matrix of the format with room for everything and nothing in it.
QuantizedMatrix empty_matrix(const QuantFormat& format, int64_t rows, int64_t columns);

// Fits the grid of unit `unit` of row `row` to `values` and writes it into the matrix; value = scale * code + offset
// with the scales and offsets of its groups. Searched for is the least squared error of rounding, by `weights`, among
// ranges that cut the outermost values off. False when a scale is too large for its precision.
bool fit_unit(QuantizedMatrix& matrix, int64_t row, int64_t unit, std::span<const float> values,
              std::span<const float> weights, std::span<float> scales, std::span<float> offsets);

// Writes the codes of a unit whose grid is fitted.
void store_unit(QuantizedMatrix& matrix, int64_t row, int64_t unit, std::span<const uint8_t> codes);

}  // namespace dynslice
