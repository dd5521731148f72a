// What makes all tokens count alike, however large their streams are.
#pragma once

#include <ATen/core/Tensor.h>

namespace dynslice {

// 1 / ‖row‖ of every row of [n, d], 0 for rows of zeros: [n, 1]. The roots of the weights 1 / ‖row‖².
[[nodiscard]] at::Tensor inverse_norms(const at::Tensor& rows);

}  // namespace dynslice
