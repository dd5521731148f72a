// What makes all tokens count alike, however large their streams are.
#pragma once

#include "aten.h"

namespace dynslice {

// 1 / ‖row‖ of every row of [n, d], 0 for rows of zeros: [n, 1]. The roots of the weights 1 / ‖row‖².
inline at::Tensor inverse_norms(const at::Tensor& rows) {
  const at::Tensor norms = rows.norm(2, 1, /*keepdim=*/true);
  return at::where(norms.gt(0), norms.reciprocal(), at::zeros_like(norms));
}

}  // namespace dynslice
