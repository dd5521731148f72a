// The second moment of activations, summed while they pass: what principal directions and least squares are made of.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

namespace dynslice {

// Σ_t x_t x_tᵀ, not centred, in fp64.
class SecondMoment {
 public:
  SecondMoment(int64_t width, at::Device device);

  // x [..., width], fp32.
  void add(const at::Tensor& x);

  // The whole sum [width, width] fp64; nothing is left here, since such a matrix may be the largest thing in memory.
  // Throws kBadInput when an x held NaN or Inf; `where` names the place in the message: "the residual stream entering
  // layer 3".
  at::Tensor take(const std::string& where);

  // Whether no x so far held NaN or Inf.
  [[nodiscard]] bool is_finite() const;

  // The sum so far, for a journal that keeps it and brings it back.
  at::Tensor& sum() { return upper_; }

 private:
  at::Tensor upper_;  // [width, width]; only the blocks on and above the diagonal are kept
  int64_t block_ = 0;
};

// Throws the kBadInput that activations hold NaN or Inf; `where` as in SecondMoment::take.
[[noreturn]] void throw_not_finite(const std::string& where);

}  // namespace dynslice
