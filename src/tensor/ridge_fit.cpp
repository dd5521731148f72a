#include "dynslice/tensor/ridge_fit.h"

#include <algorithm>

#include "aten.h"
#include "dynslice/support/error.h"
#include "dynslice/tensor/blocks.h"
#include "dynslice/tensor/kernels.h"

namespace dynslice {

at::Tensor cholesky_factor(const at::Tensor& matrix, const std::string& where, const char* what) {
  auto [factor, info] = at::linalg_cholesky_ex(matrix);
  if (info.item<int>() != 0)
    throw_error(ErrorKind::kBadInput, where, ": ", what, " is not positive definite; give a larger --ridge");
  return factor;
}

at::Tensor ridge_factor(at::Tensor moment, double ridge, const std::string& where) {
  moment.diagonal().add_(std::max(ridge * moment.diagonal().mean().item<double>(), 1e-30));
  return cholesky_factor(moment, where, "the second moment");
}

RidgeFit::RidgeFit(int64_t features, int64_t targets, at::Device device) : moment_(features, device) {
  if (targets > 0) cross_ = at::zeros({features, targets}, at::TensorOptions().dtype(at::kDouble).device(device));
}

void RidgeFit::add(const at::Tensor& f, const at::Tensor& y) {
  moment_.add(f);
  if (!y.defined()) return;
  for (int64_t row = 0; row < f.size(0); row += kSummedRows) {
    const int64_t some = std::min(kSummedRows, f.size(0) - row);
    cross_.add_(kernels::matmul(f.narrow(0, row, some).t(), y.narrow(0, row, some)));
  }
}

bool RidgeFit::is_finite() const {
  return moment_.is_finite() && (!cross_.defined() || at::isfinite(cross_).all().item<bool>());
}

at::Tensor RidgeFit::solve(double ridge, const std::string& where) {
  if (!is_finite()) throw_not_finite(where);
  return at::cholesky_solve(cross_, ridge_factor(take(where), ridge, where));
}

}  // namespace dynslice
