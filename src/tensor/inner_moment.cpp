#include "dynslice/tensor/inner_moment.h"

#include <algorithm>

#include "aten.h"
#include "dynslice/tensor/elimination.h"
#include "dynslice/tensor/inverse_norms.h"
#include "dynslice/tensor/kernels.h"

namespace dynslice {
namespace {

// Rows whose products are summed in fp32 before they go to the fp64 sum.
constexpr int64_t kRows = 512;

}  // namespace

InnerMoment::InnerMoment(int64_t inner, int64_t outputs, bool by_norm, at::Device device)
    : moment_(inner, device), by_norm_(by_norm) {
  if (outputs > 0) cross_ = at::zeros({inner, outputs}, at::TensorOptions().dtype(at::kDouble).device(device));
}

void InnerMoment::add(const at::Tensor& z, const at::Tensor& error, const at::Tensor& x) {
  at::Tensor rows = z.reshape({-1, z.size(-1)}).to(at::kFloat);
  const int64_t count = rows.size(0);
  at::Tensor root;
  if (by_norm_) {
    root = inverse_norms(x.reshape({count, -1}));
    rows = rows * root;
  }
  weight_ += root.defined() ? root.square().sum(at::kDouble).item<double>() : static_cast<double>(count);
  moment_.add(rows);
  if (!error.defined()) return;
  at::Tensor lacking = error.reshape({-1, error.size(-1)});
  if (root.defined()) lacking = lacking * root;
  for (int64_t row = 0; row < count; row += kRows) {
    const int64_t some = std::min(kRows, count - row);
    cross_.add_(kernels::matmul(rows.narrow(0, row, some).t(), lacking.narrow(0, row, some)));
  }
}

at::Tensor InnerMoment::solve(double ridge, const std::string& where) {
  at::Tensor second = take(where);
  const at::Tensor nothing = at::zeros({second.size(0), 1}, second.options());
  return Elimination(std::move(second), nothing, {}, ridge, where).solve(cross_);
}

}  // namespace dynslice
