// What a text makes of the inside of one MLP: second moment and, with a target, the cross moment, with weighted tokens.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "dynslice/tensor/ridge_fit.h"

namespace dynslice {

class InnerMoment {
 public:
  // `outputs` is the width of errors, 0 without any. Tokens weigh w = 1 / ‖x_t‖² of the stream when `by_norm`, without
  // which the few tokens of massive activations rule the sums, else 1.
  InnerMoment(int64_t inner, int64_t outputs, bool by_norm, at::Device device);

  // The next tokens: z [..., inner]; what the output lacks there, e [..., outputs] (undefined where it lacks nothing);
  // and the stream x [..., d] that the MLP reads.
  void add(const at::Tensor& z, const at::Tensor& error, const at::Tensor& x);

  // Σ_t w_t z_t z_tᵀ [inner, inner] fp64; may be asked for once. Throws kBadInput naming `where` for NaN or Inf.
  at::Tensor take(const std::string& where) { return fit_.take(where); }
  // Σ_t w_t z_t e_tᵀ [inner, outputs] fp64; undefined without errors.
  [[nodiscard]] const at::Tensor& cross() const { return fit_.cross(); }
  // Σ_t w_t
  [[nodiscard]] double weight() const { return weight_; }
  // (C + λI)⁻¹ Σ_t w_t z_t e_tᵀ [inner, outputs] fp64: the change of a matrix's transpose that makes up for the errors,
  // by least squares. λ is `ridge` mean diagonals of C, which is used up as by `take`.
  at::Tensor solve(double ridge, const std::string& where) { return fit_.solve(ridge, where); }

 private:
  RidgeFit fit_;
  const bool by_norm_;
  double weight_ = 0;
};

}  // namespace dynslice
