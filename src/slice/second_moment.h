// The second moment of a residual stream, and its principal directions.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

#include "slice/basis.h"

namespace dynslice {

// Σ_t x_t x_tᵀ, not centred, in fp64.
class SecondMoment {
 public:
  SecondMoment(int64_t width, at::Device device);

  // x [..., width], fp32.
  void add(const at::Tensor& x);

  // The first `keep` eigenvectors in order of falling eigenvalue, and the others.
  // A ridge of 1 % of the mean diagonal is added first, as in the reference. Throws kBadInput when the stream
  // held NaN or Inf; `where` names the place in the message.
  Basis principal_directions(int64_t keep, const std::string& where) const;

 private:
  at::Tensor upper_;  // [width, width]; only the blocks on and above the diagonal are kept
  int64_t block_ = 0;
};

}  // namespace dynslice
