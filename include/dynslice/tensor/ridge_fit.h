// Least squares with a ridge, from sums that are collected while a text passes; sums and solution in fp64.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "dynslice/tensor/second_moment.h"

namespace dynslice {

// L [n, n] with L Lᵀ = `matrix`, which is symmetric. Throws kBadInput naming `where` when it is not positive definite;
// `what` is what the message calls the matrix.
[[nodiscard]] at::Tensor cholesky_factor(const at::Tensor& matrix, const std::string& where, const char* what);

// L [n, n] fp64 with L Lᵀ = C + λ I; λ is `ridge` mean diagonals of the second moment C [n, n] fp64, which is used up.
// Throws kBadInput naming `where` when C is no second moment.
[[nodiscard]] at::Tensor ridge_factor(at::Tensor moment, double ridge, const std::string& where);

// The X that minimizes Σ_t ‖X f_t - y_t‖² + λ ‖X‖² for features f_t and targets y_t.
class RidgeFit {
 public:
  // Without targets (0) only the second moment is summed.
  RidgeFit(int64_t features, int64_t targets, at::Device device);

  // The next f [rows, features] and y [rows, targets] (undefined where it is nothing), both fp32; weights w_t are
  // factors √w_t of both.
  void add(const at::Tensor& f, const at::Tensor& y);

  // C = Σ_t f_t f_tᵀ [features, features] fp64; may be asked for once. Throws kBadInput naming `where` for NaN or Inf.
  [[nodiscard]] at::Tensor take(const std::string& where) { return moment_.take(where); }
  // Σ_t f_t y_tᵀ [features, targets] fp64; undefined without targets.
  [[nodiscard]] const at::Tensor& cross() const { return cross_; }
  // Whether no sum has become NaN or Inf.
  [[nodiscard]] bool is_finite() const;

  // Xᵀ = (C + λ I)⁻¹ Σ_t f_t y_tᵀ [features, targets] fp64; λ is `ridge` mean diagonals of C, which is used up as by
  // `take`. Throws kBadInput naming `where` for NaN or Inf.
  [[nodiscard]] at::Tensor solve(double ridge, const std::string& where);

 private:
  SecondMoment moment_;
  at::Tensor cross_;
};

}  // namespace dynslice
