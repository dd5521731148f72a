#include "slice/directions.h"

#include "aten.h"

namespace dynslice {
namespace {

// Of the mean diagonal: keeps the logarithm of what is nearly empty finite.
constexpr double kRidge = 1e-4;

// Of the gradients' logarithm beside the energy's, which is the more certain of the two.
constexpr double kGradientShare = 0.5;

at::Tensor regular(const at::Tensor& matrix) {
  at::Tensor result = matrix / matrix.diagonal().mean();
  result.diagonal().add_(kRidge);
  return result;
}

at::Tensor logarithm(const at::Tensor& matrix) {
  const auto [values, vectors] = at::linalg_eigh(regular(matrix));
  return at::matmul(vectors * values.clamp_min(kRidge / 2).log(), vectors.t());
}

}  // namespace

at::Tensor leading_directions(at::Tensor energy, const at::Tensor& gradients, int64_t keep) {
  at::Tensor worth =
      gradients.defined() ? logarithm(energy) + kGradientShare * logarithm(gradients) : std::move(energy);
  // LAPACK gives ascending eigenvalues.
  const at::Tensor vectors = std::get<1>(at::linalg_eigh(worth));
  return vectors.narrow(1, vectors.size(1) - keep, keep).flip({1}).contiguous();
}

}  // namespace dynslice
