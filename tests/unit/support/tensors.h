// Comparing tensors, on whatever devices.
#pragma once

#include "aten.h"

namespace dynslice::testing {

inline double largest_difference(const at::Tensor& a, const at::Tensor& b) {
  return (a.cpu().to(at::kDouble) - b.cpu().to(at::kDouble)).abs().max().item<double>();
}

}  // namespace dynslice::testing
