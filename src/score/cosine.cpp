#include "score/cosine.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "aten.h"
#include "dynslice/support/check.h"
#include "dynslice/tensor/multiversion.h"

namespace dynslice {
namespace {

double cosine_of_sums(double dot, double xx, double yy) {
  if (!std::isfinite(xx) || !std::isfinite(yy) || !std::isfinite(dot)) return std::numeric_limits<double>::quiet_NaN();
  if (xx == 0 || yy == 0) return kZeroNorm;
  return std::clamp(dot / std::sqrt(xx) / std::sqrt(yy), -1.0, 1.0);
}

DYNSLICE_MULTIVERSION
double row_cosine(const float* x, const float* y, int64_t width) {
  double dot = 0, xx = 0, yy = 0;
#pragma omp simd reduction(+ : dot, xx, yy)
  for (int64_t i = 0; i < width; ++i) {
    const double a = static_cast<double>(x[i]), b = static_cast<double>(y[i]);
    dot += a * b;
    xx += a * a;
    yy += b * b;
  }
  return cosine_of_sums(dot, xx, yy);
}

// Σ x y, Σ x², Σ y² of every token, [tokens, 3] on the CPU. In blocks, of which fp64 copies are made.
at::Tensor sums_on_device(const at::Tensor& x, const at::Tensor& y) {
  constexpr int64_t kTokens = 2048;
  std::vector<at::Tensor> blocks;
  for (int64_t first = 0; first < x.size(0); first += kTokens) {
    const int64_t count = std::min(kTokens, x.size(0) - first);
    const at::Tensor a = x.narrow(0, first, count).to(at::kDouble), b = y.narrow(0, first, count).to(at::kDouble);
    blocks.push_back(at::stack({(a * b).sum(1), a.square().sum(1), b.square().sum(1)}, 1));
  }
  return at::cat(blocks).cpu();
}

}  // namespace

at::Tensor token_cosines(const at::Tensor& x, const at::Tensor& y) {
  DYNSLICE_CHECK(x.sizes() == y.sizes(), "streams of different widths have no cosine");
  const int64_t width = x.size(-1), tokens = x.numel() / width;
  at::Tensor result = at::empty({tokens}, at::kDouble);
  double* cosines = result.mutable_data_ptr<double>();
  if (!x.device().is_cpu()) {
    const at::Tensor sums = sums_on_device(x.reshape({tokens, width}), y.reshape({tokens, width}));
    const double* row = sums.const_data_ptr<double>();
    for (int64_t t = 0; t < tokens; ++t, row += 3) cosines[t] = cosine_of_sums(row[0], row[1], row[2]);
    return result;
  }
  const at::Tensor a = x.contiguous(), b = y.contiguous();
  const float* left = a.const_data_ptr<float>();
  const float* right = b.const_data_ptr<float>();
  at::parallel_for(0, tokens, 64, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) cosines[t] = row_cosine(left + t * width, right + t * width, width);
  });
  return result;
}

}  // namespace dynslice
