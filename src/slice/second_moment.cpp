#include "slice/second_moment.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "dynslice/support/error.h"
#include "model/kernels.h"

namespace dynslice {
namespace {

// Rows whose products are summed in fp32 before they go to the fp64 sum: each of its entries then has the relative
// rounding of a sum of this many terms, about that of the fp32 stream itself.
constexpr int64_t kRows = 512;

}  // namespace

SecondMoment::SecondMoment(int64_t width, at::Device device)
    : upper_(at::zeros({width, width}, at::TensorOptions().dtype(at::kDouble).device(device))),
      // Six strips: with their upper parts only, 58 % of the whole product's work, in blocks large enough for GEMM.
      block_(std::max<int64_t>(device.is_cpu() ? 64 : 1024, (width + 5) / 6)) {}

void SecondMoment::add(const at::Tensor& x) {
  const int64_t width = upper_.size(0);
  for (const at::Tensor& rows : x.reshape({-1, width}).split(kRows)) {
    for (int64_t begin = 0; begin < width; begin += block_) {
      const int64_t height = std::min(block_, width - begin);
      upper_.narrow(0, begin, height)
          .narrow(1, begin, width - begin)
          .add_(kernels::matmul(rows.narrow(1, begin, height).t(), rows.narrow(1, begin, width - begin)));
    }
  }
}

Basis SecondMoment::principal_directions(int64_t keep, const std::string& where) const {
  const at::Tensor diagonal = upper_.diagonal();
  const double ridge = 0.01 * diagonal.mean().item<double>();
  at::Tensor symmetric = at::triu(upper_);
  symmetric = symmetric + at::triu(upper_, 1).t();
  symmetric.diagonal().add_(ridge);
  if (!at::isfinite(symmetric).all().item<bool>()) {
    throw_error(ErrorKind::kBadInput, "NaN or Inf in the residual stream ", where,
                "; the model's weights are damaged, or too large for the dtype (try --dtype fp32)");
  }
  // LAPACK gives ascending eigenvalues.
  const at::Tensor vectors = std::get<1>(at::linalg_eigh(symmetric));
  const int64_t dropped = vectors.size(1) - keep;
  return {vectors.narrow(1, dropped, keep).flip({1}).contiguous(), vectors.narrow(1, 0, dropped).contiguous()};
}

}  // namespace dynslice
