#include "dynslice/tensor/leverage.h"

#include "aten.h"

namespace dynslice {

at::Tensor largest_leverage(const at::Tensor& moment, int64_t count) {
  const double mean = std::max(moment.diagonal().mean().item<double>(), 1e-30);
  at::Tensor regular = moment.clone();
  regular.diagonal().add_(mean);
  // C (C + λI)⁻¹ = I - λ (C + λI)⁻¹
  const at::Tensor scores = 1 - at::cholesky_inverse(at::linalg_cholesky(regular)).diagonal() * mean;
  const auto [ordered, order] = at::sort(scores, /*stable=*/true, 0, /*descending=*/true);
  return std::get<0>(order.narrow(0, 0, count).sort());
}

}  // namespace dynslice
