#include "dynslice/tensor/inner_moment.h"

#include "aten.h"
#include "dynslice/tensor/inverse_norms.h"

namespace dynslice {

InnerMoment::InnerMoment(int64_t inner, int64_t outputs, bool by_norm, at::Device device)
    : fit_(inner, outputs, device), by_norm_(by_norm) {}

void InnerMoment::add(const at::Tensor& z, const at::Tensor& error, const at::Tensor& x) {
  at::Tensor rows = z.reshape({-1, z.size(-1)}).to(at::kFloat);
  const int64_t count = rows.size(0);
  at::Tensor lacking = error.defined() ? error.reshape({-1, error.size(-1)}) : error;
  if (!by_norm_) {
    weight_ += static_cast<double>(count);
    return fit_.add(rows, lacking);
  }
  const at::Tensor root = inverse_norms(x.reshape({count, -1}));
  weight_ += root.square().sum(at::kDouble).item<double>();
  if (lacking.defined()) lacking = lacking * root;
  fit_.add(rows * root, lacking);
}

}  // namespace dynslice
