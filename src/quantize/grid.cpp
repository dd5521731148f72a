#include "quantize/grid.h"

#include <ATen/Parallel.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "aten.h"
#include "dynslice/formats/gguf/ggml_dequantize.h"
#include "dynslice/formats/gguf/ggml_quantize.h"
#include "dynslice/support/error.h"
#include "dynslice/tensor/multiversion.h"

namespace dynslice {
namespace {

// Values that are worth another thread.
constexpr int64_t kGrainValues = int64_t{1} << 15;

// A scale so small that dividing by it would overflow is none: its group's weights are 0 in every other sense too.
float in_precision(at::ScalarType dtype, float scale) {
  if (std::abs(scale) < std::numeric_limits<float>::min()) return 0;
  if (dtype == at::ScalarType::Half) return static_cast<float>(c10::Half(scale));
  if (dtype == at::ScalarType::BFloat16) return static_cast<float>(c10::BFloat16(scale));
  return scale;
}

// value = scale * (code - zero), code in [0, top].
struct IntegerGrid {
  float scale = 0;
  float zero = 0;
  float top = 0;
  float inverse() const { return scale != 0 ? 1.0F / scale : 0.0F; }
};

// The loops are written once and inlined into functions that are compiled for several instruction sets.
inline __attribute__((always_inline)) void find_range(const float* v, int64_t n, float& low, float& high) {
  float least = 0, most = 0;
#pragma omp simd reduction(min : least) reduction(max : most)
  for (int64_t i = 0; i < n; ++i) {
    least = std::min(least, v[i]);
    most = std::max(most, v[i]);
  }
  low = least;
  high = most;
}

inline __attribute__((always_inline)) float code_of(float v, float inverse, float zero, float top) {
  return std::min(std::max(std::nearbyint(v * inverse + zero), 0.0F), top);
}

inline __attribute__((always_inline)) void encode_all(const float* v, int64_t n, const IntegerGrid& grid,
                                                      uint8_t* codes) {
  const float inverse = grid.inverse(), zero = grid.zero, top = grid.top;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) codes[i] = static_cast<uint8_t>(code_of(v[i], inverse, zero, top));
}

inline __attribute__((always_inline)) IntegerGrid span_range(float low, float high, const QuantFormat& format) {
  IntegerGrid grid;
  grid.top = static_cast<float>((1 << format.bits) - 1);
  if (format.symmetric) {
    grid.zero = static_cast<float>(1 << (format.bits - 1));
    grid.scale = in_precision(format.scale_dtype, std::max(high, -low) / (grid.zero - 0.5F));
  } else {
    grid.scale = in_precision(format.scale_dtype, (high - low) / grid.top);
    grid.zero = std::min(std::max(std::nearbyint(-low * grid.inverse()), 0.0F), grid.top);
  }
  return grid;
}

// A whole row by the range of each group.
DYNSLICE_MULTIVERSION
bool round_row(const float* v, int64_t columns, int64_t group, const QuantFormat& format, uint8_t* codes, float* scales,
               uint8_t* zero_points) {
  bool finite = true;
  for (int64_t first = 0, g = 0; first < columns; first += group, ++g) {
    float low = 0, high = 0;
    find_range(v + first, group, low, high);
    const IntegerGrid grid = span_range(low, high, format);
    finite = finite && std::isfinite(grid.scale);
    encode_all(v + first, group, grid, codes + first);
    scales[g] = grid.scale;
    if (zero_points != nullptr) zero_points[g] = static_cast<uint8_t>(grid.zero);
  }
  return finite;
}

DYNSLICE_MULTIVERSION
float loss_of(const float* v, const float* w, int64_t n, const IntegerGrid& grid) {
  const float inverse = grid.inverse(), zero = grid.zero, top = grid.top, scale = grid.scale;
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) {
    const float error = v[i] - scale * (code_of(v[i], inverse, zero, top) - zero);
    sum += w[i] * error * error;
  }
  return sum;
}

// The scale with which the codes that the grid gives fit the values best.
DYNSLICE_MULTIVERSION
float refit_scale(const float* v, const float* w, int64_t n, const IntegerGrid& grid) {
  const float inverse = grid.inverse(), zero = grid.zero, top = grid.top;
  float cross = 0, square = 0;
#pragma omp simd reduction(+ : cross, square)
  for (int64_t i = 0; i < n; ++i) {
    const float step = code_of(v[i], inverse, zero, top) - zero;
    cross += w[i] * step * v[i];
    square += w[i] * step * step;
  }
  return square > 0 ? cross / square : grid.scale;
}

// Among ranges that leave out ever more of the outermost values, and what a refit makes of the best of them.
IntegerGrid search_grid(const float* v, const float* w, int64_t n, const QuantFormat& format) {
  float low = 0, high = 0;
  find_range(v, n, low, high);
  IntegerGrid best = span_range(low, high, format);
  float least = loss_of(v, w, n, best);
  const auto take = [&](const IntegerGrid& grid) {
    const float loss = loss_of(v, w, n, grid);
    if (!(loss < least)) return false;
    least = loss;
    best = grid;
    return true;
  };
  const int steps = format.bits <= 4 ? 24 : 8;
  for (int step = 1; step <= steps; ++step) {
    const float share = 1.0F - 0.02F * static_cast<float>(step);
    take(span_range(share * low, share * high, format));
  }
  const auto refit = [&](IntegerGrid grid) {
    grid.scale = in_precision(format.scale_dtype, refit_scale(v, w, n, grid));
    return grid;
  };
  if (!format.symmetric && format.bits <= 3) {  // of few levels, which one is 0 matters
    const float zero = best.zero;
    for (const float other : {zero - 1, zero + 1}) {
      if (other < 0 || other > best.top) continue;
      IntegerGrid grid = best;
      grid.zero = other;
      take(refit(grid));
    }
  }
  for (int round = 0; round < 3 && take(refit(best)); ++round) {
  }
  return best;
}

bool fit_integers(QuantizedMatrix& matrix, int64_t row, int64_t group, std::span<const float> values,
                  std::span<const float> weights, float& scale, float& offset) {
  const IntegerGrid grid =
      search_grid(values.data(), weights.data(), static_cast<int64_t>(values.size()), matrix.format);
  const int64_t place = row * matrix.scales.size(1) + group;
  matrix.scales.mutable_data_ptr<float>()[place] = grid.scale;
  if (matrix.zero_points.defined())
    matrix.zero_points.mutable_data_ptr<uint8_t>()[place] = static_cast<uint8_t>(grid.zero);
  scale = grid.scale;
  offset = -grid.zero * grid.scale;
  return std::isfinite(grid.scale);
}

std::span<std::byte> block_bytes(QuantizedMatrix& matrix, int64_t row, int64_t unit) {
  const auto bytes = static_cast<int64_t>(ggml_format(*matrix.format.block_type).bytes);
  auto* first = reinterpret_cast<std::byte*>(matrix.blocks.mutable_data_ptr<uint8_t>());
  return {first + row * matrix.blocks.size(1) + unit * bytes, static_cast<size_t>(bytes)};
}

[[noreturn]] void fail_scale(const QuantFormat& format) {
  throw_error(ErrorKind::kBadInput, "weights are too large for the scales of ", describe(format));
}

// fn(row, row's values) of every row; false of any of them is an error.
template <typename RoundRow>
void for_rows(const at::Tensor& weight, const QuantFormat& format, const RoundRow& round) {
  const float* values = weight.const_data_ptr<float>();
  const int64_t columns = weight.size(1);
  std::atomic<bool> finite = true;
  at::parallel_for(0, weight.size(0), std::max<int64_t>(1, kGrainValues / columns), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      if (!round(row, values + row * columns)) finite = false;
    }
  });
  if (!finite) fail_scale(format);
}

}  // namespace

std::string describe(const QuantFormat& format) {
  if (format.block_type) return ggml_format(*format.block_type).name;
  return std::to_string(format.bits) + " bits, " +
         (format.group_size > 0 ? "groups of " + std::to_string(format.group_size) : "one scale a row") + ", " +
         (format.symmetric ? "symmetric" : "asymmetric");
}

double stored_bits(const QuantFormat& format, int64_t columns) {
  if (format.block_type) {
    const GgmlFormat& block = ggml_format(*format.block_type);
    return 8.0 * static_cast<double>(block.bytes) / static_cast<double>(block.values);
  }
  const auto group = static_cast<double>(format.group_size > 0 ? format.group_size : columns);
  const double scale = 8.0 * static_cast<double>(c10::elementSize(format.scale_dtype));
  return format.bits + (scale + (format.symmetric ? 0 : format.bits)) / group;
}

bool is_fine(const QuantFormat& format) {
  constexpr int kCodes = 255;  // of Q8_0
  return (format.block_type ? ggml_grid(*format.block_type).codes : 1 << format.bits) >= kCodes;
}

void check_format(const QuantFormat& format, int64_t columns, const std::string& what) {
  if (!format.block_type && (format.bits < 2 || format.bits > 8)) {
    throw_error(ErrorKind::kUsage, what, ": ", format.bits, " bits do not exist; 2 to 8 do");
  }
  const int64_t unit = grid_unit(format, columns);
  if (columns % unit == 0) return;
  throw_error(ErrorKind::kUsage, what, ": its rows of ", columns, " weights do not divide into ",
              format.block_type ? "blocks of " : "groups of ", unit, " (", describe(format), ")");
}

int64_t grid_unit(const QuantFormat& format, int64_t columns) {
  if (format.block_type) return ggml_format(*format.block_type).values;
  return format.group_size > 0 ? format.group_size : columns;
}

GridShape grid_shape(const QuantFormat& format, int64_t columns) {
  if (format.block_type) {
    const GgmlGrid grid = ggml_grid(*format.block_type);
    return {grid.block_values, grid.group_values, grid.codes};
  }
  const int64_t unit = grid_unit(format, columns);
  return {unit, unit, 1 << format.bits};
}

QuantizedMatrix empty_matrix(const QuantFormat& format, int64_t rows, int64_t columns) {
  check_format(format, columns, "a matrix");
  QuantizedMatrix matrix;
  matrix.format = format;
  matrix.columns = columns;
  if (format.block_type) {
    const GgmlFormat& block = ggml_format(*format.block_type);
    matrix.blocks = at::empty({rows, columns / block.values * block.bytes}, at::kByte);
    return matrix;
  }
  const int64_t groups = columns / grid_unit(format, columns);
  matrix.codes = at::empty({rows, columns}, at::kByte);
  matrix.scales = at::empty({rows, groups}, at::kFloat);
  if (!format.symmetric) matrix.zero_points = at::empty({rows, groups}, at::kByte);
  return matrix;
}

bool fit_unit(QuantizedMatrix& matrix, int64_t row, int64_t unit, std::span<const float> values,
              std::span<const float> weights, std::span<float> scales, std::span<float> offsets) {
  if (matrix.format.block_type) {
    return fit_block(*matrix.format.block_type, values, weights, block_bytes(matrix, row, unit), scales, offsets);
  }
  return fit_integers(matrix, row, unit, values, weights, scales.front(), offsets.front());
}

void store_unit(QuantizedMatrix& matrix, int64_t row, int64_t unit, std::span<const uint8_t> codes) {
  if (matrix.format.block_type) {
    store_codes(*matrix.format.block_type, codes, block_bytes(matrix, row, unit));
    return;
  }
  const auto count = static_cast<int64_t>(codes.size());
  std::memcpy(matrix.codes.mutable_data_ptr<uint8_t>() + row * matrix.columns + unit * count, codes.data(),
              codes.size());
}

QuantizedMatrix round_to_nearest(const at::Tensor& weight, const QuantFormat& format) {
  const at::Tensor whole = weight.contiguous();
  const int64_t columns = whole.size(1);
  QuantizedMatrix matrix = empty_matrix(format, whole.size(0), columns);
  if (format.block_type) {
    const int64_t units = columns / grid_unit(format, columns);
    for_rows(whole, format, [&](int64_t row, const float* values) {
      const auto bytes = block_bytes(matrix, row, 0);
      return quantize(*format.block_type, {values, static_cast<size_t>(columns)},
                      {bytes.data(), bytes.size() * static_cast<size_t>(units)});
    });
    return matrix;
  }
  const int64_t groups = matrix.scales.size(1);
  uint8_t* codes = matrix.codes.mutable_data_ptr<uint8_t>();
  auto* scales = matrix.scales.mutable_data_ptr<float>();
  uint8_t* zeros = format.symmetric ? nullptr : matrix.zero_points.mutable_data_ptr<uint8_t>();
  for_rows(whole, format, [&](int64_t row, const float* values) {
    return round_row(values, columns, columns / groups, format, codes + row * columns, scales + row * groups,
                     zeros != nullptr ? zeros + row * groups : nullptr);
  });
  return matrix;
}

QuantizedMatrix QuantizedMatrix::narrow(int64_t first, int64_t count) const {
  QuantizedMatrix part = *this;
  for (at::Tensor* tensor : {&part.codes, &part.scales, &part.zero_points, &part.blocks}) {
    if (tensor->defined()) *tensor = tensor->narrow(0, first, count);
  }
  return part;
}

at::Tensor QuantizedMatrix::values() const {
  if (!blocks.defined()) {
    const int64_t groups = scales.size(1);
    const at::Tensor zero = zero_points.defined()
                                ? zero_points.to(at::kFloat).unsqueeze(2)
                                : at::full({1, 1, 1}, static_cast<double>(1 << (format.bits - 1)), at::kFloat);
    return codes.to(at::kFloat)
        .view({codes.size(0), groups, columns / groups})
        .sub_(zero)
        .mul_(scales.unsqueeze(2))
        .view({codes.size(0), columns});
  }
  const at::Tensor whole = blocks.contiguous();
  at::Tensor result = at::empty({whole.size(0), columns}, at::kFloat);
  const auto* bytes = reinterpret_cast<const std::byte*>(whole.const_data_ptr<uint8_t>());
  auto* out = result.mutable_data_ptr<float>();
  const auto row_bytes = static_cast<size_t>(whole.size(1)), width = static_cast<size_t>(columns);
  at::parallel_for(0, whole.size(0), std::max<int64_t>(1, kGrainValues / columns), [&](int64_t begin, int64_t end) {
    for (auto row = static_cast<size_t>(begin); row < static_cast<size_t>(end); ++row) {
      dequantize(*format.block_type, {bytes + row * row_bytes, row_bytes}, {out + row * width, width});
    }
  });
  return result;
}

}  // namespace dynslice
