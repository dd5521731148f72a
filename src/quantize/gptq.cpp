#include "dynslice/quantize/gptq.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <numeric>
#include <vector>

#include "aten.h"
#include "dynslice/support/check.h"
#include "dynslice/support/error.h"
#include "dynslice/tensor/kernels.h"
#include "dynslice/tensor/multiversion.h"
#include "quantize/grid.h"

namespace dynslice {
namespace {

// Columns between two matrix products, about: the rows' corrections of so many stay in a core's cache.
constexpr int64_t kPanel = 256;
// Rows that are rounded together, so that the factor is read once for all of them.
constexpr int64_t kRows = 4;

// sums[r][0 ... count) += errors[r] * factor[0 ... count).
DYNSLICE_MULTIVERSION
void add_errors(const std::array<float, kRows>& errors, const float* factor, int64_t count, float* sums,
                int64_t stride) {
  const float a = errors[0], b = errors[1], c = errors[2], d = errors[3];
  float *s = sums, *t = sums + stride, *u = sums + 2 * stride, *v = sums + 3 * stride;
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    s[i] += a * factor[i];
    t[i] += b * factor[i];
    u[i] += c * factor[i];
    v[i] += d * factor[i];
  }
}

// Places of the units' columns: the column with the largest input last, where rounding begins.
at::Tensor order_columns(const at::Tensor& diagonal, int64_t unit, bool act_order) {
  const int64_t columns = diagonal.numel();
  const double* energy = diagonal.const_data_ptr<double>();
  std::vector<int64_t> units(static_cast<size_t>(columns / unit));
  std::iota(units.begin(), units.end(), 0);
  const auto energy_of = [&](int64_t u) { return std::accumulate(energy + u * unit, energy + (u + 1) * unit, 0.0); };
  std::vector<double> unit_energy;
  for (const int64_t u : units) unit_energy.push_back(energy_of(u));
  const auto by = [&](const double* values) {
    return [values](int64_t a, int64_t b) { return values[a] < values[b]; };
  };
  if (act_order) {
    std::ranges::stable_sort(units, by(unit_energy.data()));
  } else {
    std::ranges::reverse(units);
  }
  at::Tensor places = at::empty({columns}, at::kLong);
  auto* place = places.mutable_data_ptr<int64_t>();
  for (const int64_t u : units) {
    std::iota(place, place + unit, u * unit);
    if (act_order) {
      std::stable_sort(place, place + unit, by(energy));
    } else {
      std::reverse(place, place + unit);
    }
    place += unit;
  }
  return places;
}

}  // namespace

// The rounding of one matrix: everything that its rows share.
class GptqRounding {
 public:
  GptqRounding(const at::Tensor& weight, const at::Tensor& column_at, const at::Tensor& factor, int64_t unit,
               QuantizedMatrix& matrix)
      : shape_(grid_shape(matrix.format, matrix.columns)),
        unit_(unit),
        columns_(matrix.columns),
        rows_(weight.size(0)),
        column_at_(column_at.const_data_ptr<int64_t>()),
        factor_tensor_(factor),
        factor_(factor.const_data_ptr<float>()),
        weights_(weight.const_data_ptr<float>()),
        errors_(at::zeros({rows_, columns_}, at::kFloat)),
        matrix_(matrix) {
    const at::Tensor diagonal = factor.diagonal().contiguous();
    const float* d = diagonal.const_data_ptr<float>();
    diagonal_.assign(d, d + columns_);
    importance_.resize(static_cast<size_t>(columns_));
    for (int64_t place = 0; place < columns_; ++place) {
      const float root = diagonal_[static_cast<size_t>(place)];
      importance_[static_cast<size_t>(column_at_[place])] = root * root;
    }
  }

  // False when a scale is too large for its precision.
  bool run() {
    if (is_fitted_before()) fit_whole_rows();
    // Panels of whole units, or any part of a row whose grid is fitted already.
    const int64_t step = is_fitted_before() ? kPanel : std::max(unit_, kPanel / unit_ * unit_);
    for (int64_t end = columns_; end > 0;) {
      const int64_t begin = std::max<int64_t>(0, end - step);
      round_panel(begin, end);
      end = begin;
    }
    return finite_;
  }

 private:
  bool is_fitted_before() const { return unit_ == columns_; }

  void fit_whole_rows() {
    const int64_t groups = shape_.groups();
    row_grids_.resize(static_cast<size_t>(rows_ * groups * 2));
    at::parallel_for(0, rows_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        float* grids = row_grids_.data() + row * groups * 2;
        const auto count = static_cast<size_t>(groups);
        if (!fit_unit(matrix_, row, 0, {weights_ + row * columns_, static_cast<size_t>(columns_)}, importance_,
                      {grids, count}, {grids + groups, count}))
          finite_ = false;
      }
    });
    row_codes_ = at::empty({rows_, columns_}, at::kByte);
  }

  // Places [begin, end) of all rows.
  void round_panel(int64_t begin, int64_t end) {
    // What the places behind have done to these: [rows, end - begin].
    at::Tensor sums = at::zeros({(rows_ + kRows - 1) / kRows * kRows, end - begin}, at::kFloat);
    if (end < columns_) {
      sums.narrow(0, 0, rows_)
          .copy_(kernels::matmul(errors_.narrow(1, end, columns_ - end),
                                 factor_tensor_.narrow(0, end, columns_ - end).narrow(1, begin, end - begin)));
    }
    auto* first = sums.mutable_data_ptr<float>();
    at::parallel_for(0, (rows_ + kRows - 1) / kRows, 4, [&](int64_t from, int64_t to) {
      for (int64_t tile = from; tile < to; ++tile) {
        RowTile rows{tile * kRows, std::min(kRows, rows_ - tile * kRows), first + tile * kRows * (end - begin),
                     end - begin, begin};
        round_rows(rows, begin, end);
      }
    });
    if (is_fitted_before() && begin == 0) store_whole_rows();
  }

  // Some rows and the corrections of a panel's places.
  struct RowTile {
    int64_t row, count;
    float* sums;
    int64_t stride, begin;
    float& sum(int64_t r, int64_t place) const { return sums[r * stride + place - begin]; }
  };

  float target(const RowTile& rows, int64_t r, int64_t place) const {
    const float weight = weights_[(rows.row + r) * columns_ + column_at_[place]];
    return weight + rows.sum(r, place) / diagonal_[static_cast<size_t>(place)];
  }

  void round_rows(const RowTile& rows, int64_t begin, int64_t end) {
    if (is_fitted_before()) {
      std::array<const float*, kRows> grids{};
      std::array<uint8_t*, kRows> codes{};
      for (int64_t r = 0; r < rows.count; ++r) {
        grids[static_cast<size_t>(r)] = row_grids_.data() + (rows.row + r) * shape_.groups() * 2;
        codes[static_cast<size_t>(r)] = row_codes_.mutable_data_ptr<uint8_t>() + (rows.row + r) * columns_;
      }
      round_places(rows, begin, end, 0, grids, codes);
      return;
    }
    const auto groups = static_cast<size_t>(shape_.groups()), width = static_cast<size_t>(unit_);
    std::vector<float> values(width), grids(kRows * 2 * groups);
    std::vector<uint8_t> codes(kRows * width);
    std::array<const float*, kRows> grid_of{};
    std::array<uint8_t*, kRows> codes_of{};
    for (int64_t last = end; last > begin; last -= unit_) {
      const int64_t first = last - unit_, unit = column_at_[first] / unit_, start = unit * unit_;
      const std::span<const float> importance(importance_.data() + start, width);
      for (int64_t r = 0; r < rows.count; ++r) {
        const auto k = static_cast<size_t>(r);
        for (int64_t place = first; place < last; ++place)
          values[static_cast<size_t>(column_at_[place] - start)] = target(rows, r, place);
        float* grid = grids.data() + k * 2 * groups;
        if (!fit_unit(matrix_, rows.row + r, unit, values, importance, {grid, groups}, {grid + groups, groups}))
          finite_ = false;
        grid_of[k] = grid;
        codes_of[k] = codes.data() + k * width;
      }
      round_places(rows, first, last, start, grid_of, codes_of);
      for (int64_t r = 0; r < rows.count; ++r)
        store_unit(matrix_, rows.row + r, unit, {codes_of[static_cast<size_t>(r)], width});
    }
  }

  // Places [first, last), whose columns begin at column `start`, on grids that are fitted. The corrections of all
  // places of the panel in front of them are brought up to date.
  void round_places(const RowTile& rows, int64_t first, int64_t last, int64_t start,
                    const std::array<const float*, kRows>& grids, const std::array<uint8_t*, kRows>& codes) {
    const int64_t groups = shape_.groups();
    const auto top = static_cast<float>(shape_.levels - 1);
    std::array<float, kRows> errors{};
    for (int64_t place = last - 1; place >= first; --place) {
      const int64_t in_unit = column_at_[place] - start, group = in_unit / shape_.group;
      for (int64_t r = 0; r < rows.count; ++r) {
        const auto k = static_cast<size_t>(r);
        const float scale = grids[k][group], offset = grids[k][groups + group];
        const float wanted = target(rows, r, place);
        const float code = scale != 0 ? std::min(std::max(std::nearbyint((wanted - offset) / scale), 0.0F), top) : 0.0F;
        codes[k][in_unit] = static_cast<uint8_t>(code);
        const float weight = weights_[(rows.row + r) * columns_ + column_at_[place]];
        errors[k] = weight - (scale * code + offset);
        errors_data_[(rows.row + r) * columns_ + place] = errors[k];
      }
      add_errors(errors, factor_ + place * columns_ + rows.begin, place - rows.begin, rows.sums, rows.stride);
    }
  }

  void store_whole_rows() {
    const uint8_t* codes = row_codes_.const_data_ptr<uint8_t>();
    for (int64_t row = 0; row < rows_; ++row)
      store_unit(matrix_, row, 0, {codes + row * columns_, static_cast<size_t>(columns_)});
  }

  const GridShape shape_;
  const int64_t unit_, columns_, rows_;
  const int64_t* column_at_;
  const at::Tensor& factor_tensor_;
  const float* factor_;
  const float* weights_;
  at::Tensor errors_;  // [rows, columns], by places: w - ŵ
  float* errors_data_ = errors_.mutable_data_ptr<float>();
  std::vector<float> diagonal_;    // of the factor, by places
  std::vector<float> importance_;  // its square, by columns
  std::vector<float> row_grids_;   // scales and offsets of rows that are one unit
  at::Tensor row_codes_;
  QuantizedMatrix& matrix_;
  std::atomic<bool> finite_ = true;
};

Gptq::Gptq(at::Tensor moment, int64_t unit, const GptqOptions& options) : columns_(moment.size(0)), unit_(unit) {
  const double mean = moment.diagonal().mean().item<double>();
  // Inputs that are all 0 say nothing of how errors weigh; rounding to nearest is then as good as anything.
  moment.diagonal().add_(mean > 0 ? options.damping * mean : 1.0);
  const bool is_row = unit_ == columns_;
  column_at_ = order_columns(moment.diagonal().cpu().contiguous(), is_row ? 1 : unit_, options.act_order);
  const at::Tensor places = column_at_.to(moment.device());
  moment = moment.index_select(0, places);  // one after the other: never more than two such matrices
  moment = moment.index_select(1, places);
  const auto [factor, info] = at::linalg_cholesky_ex(moment);
  moment.reset();
  if (info.item<int>() != 0) {
    throw_error(ErrorKind::kBadInput,
                "the second moment of a matrix's inputs is singular; give a larger --damping, or "
                "more calibration text");
  }
  factor_ = factor.to(at::kFloat).cpu().contiguous();
}

QuantizedMatrix Gptq::quantize(const at::Tensor& weight, const QuantFormat& format) const {
  DYNSLICE_CHECK(weight.size(1) == columns_ && grid_unit(format, columns_) == unit_,
                 "Gptq::quantize: the format has other units than the factor was ordered for");
  const at::Tensor whole = weight.contiguous();
  QuantizedMatrix matrix = empty_matrix(format, whole.size(0), columns_);
  if (!GptqRounding(whole, column_at_, factor_, unit_, matrix).run()) {
    throw_error(ErrorKind::kBadInput, "weights are too large for the scales of ", describe(format));
  }
  return matrix;
}

}  // namespace dynslice
