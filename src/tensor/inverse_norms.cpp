#include "dynslice/tensor/inverse_norms.h"

#include "aten.h"

namespace dynslice {

at::Tensor inverse_norms(const at::Tensor& rows) {
  const at::Tensor norms = rows.norm(2, 1, /*keepdim=*/true);
  return at::where(norms.gt(0), norms.reciprocal(), at::zeros_like(norms));
}

}  // namespace dynslice
