// What a text makes of the inside of one MLP: second moment and, with a target, the cross moment, with weighted tokens.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "model/second_moment.h"

namespace dynslice {

class InnerMoment {
 public:
  // `outputs` is the width of errors, 0 without any.
  InnerMoment(int64_t inner, int64_t outputs, at::Device device);

  // The next tokens: z [..., inner]; what the output lacks there, e [..., outputs] (undefined where it lacks nothing);
  // and the roots of the tokens' weights [n, 1] (undefined: all 1).
  void add(const at::Tensor& z, const at::Tensor& error, const at::Tensor& weight_roots);

  // Σ_t w_t z_t z_tᵀ [inner, inner] fp64; may be asked for once. Throws kBadInput naming `where` for NaN or Inf.
  at::Tensor take(const std::string& where) { return moment_.take(where); }
  // Σ_t w_t z_t e_tᵀ [inner, outputs] fp64; undefined without errors.
  const at::Tensor& cross() const { return cross_; }
  // Σ_t w_t
  double weight() const { return weight_; }

 private:
  SecondMoment moment_;
  at::Tensor cross_;
  double weight_ = 0;
};

}  // namespace dynslice
