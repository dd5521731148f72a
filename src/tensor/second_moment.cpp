#include "dynslice/tensor/second_moment.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "aten.h"
#include "dynslice/support/error.h"
#include "dynslice/support/machine.h"
#include "dynslice/tensor/blocks.h"
#include "dynslice/tensor/kernels.h"

namespace dynslice {
namespace {

// Of a moment whose factorization takes long enough for clearing pages not to count.
constexpr size_t kLargeBytes = size_t{32} << 20;

}  // namespace

SecondMoment::SecondMoment(int64_t width, at::Device device)
    : upper_(at::zeros({width, width}, at::TensorOptions().dtype(at::kDouble).device(device))),
      // Six strips: with their upper parts only, 58 % of the whole product's work, in blocks large enough for GEMM.
      block_(std::max<int64_t>(device.is_cpu() ? 64 : 1024, (width + 5) / 6)) {}

void SecondMoment::add(const at::Tensor& x) {
  const int64_t width = upper_.size(0);
  for (const at::Tensor& rows : x.reshape({-1, width}).split(kSummedRows)) {
    for (int64_t begin = 0; begin < width; begin += block_) {
      const int64_t height = std::min(block_, width - begin);
      upper_.narrow(0, begin, height)
          .narrow(1, begin, width - begin)
          .add_(kernels::matmul(rows.narrow(1, begin, height).t(), rows.narrow(1, begin, width - begin)));
    }
  }
}

bool SecondMoment::is_finite() const {
  return std::isfinite(upper_.sum().item<double>()) || at::isfinite(upper_).all().item<bool>();
}

at::Tensor SecondMoment::take(const std::string& where) {
  const int64_t width = upper_.size(0);
  for (int64_t begin = 0; begin < width; begin += block_) {
    const int64_t height = std::min(block_, width - begin), end = begin + height;
    const at::Tensor rows = upper_.narrow(0, begin, height);
    const at::Tensor square = rows.narrow(1, begin, height);
    square.copy_(at::triu(square) + at::triu(square, 1).t());
    upper_.narrow(0, end, width - end).narrow(1, begin, height).copy_(rows.narrow(1, end, width - end).t());
  }
  if (!is_finite()) throw_not_finite(where);
  // What factorizes it takes more matrices of its size, and they seldom fit into what the chunks left in the heap.
  if (upper_.nbytes() >= kLargeBytes) return_freed_memory();
  return std::exchange(upper_, at::Tensor());
}

void throw_not_finite(const std::string& where) {
  throw_error(ErrorKind::kBadInput, "NaN or Inf in ", where,
              "; the model's weights are damaged, or too large for the dtype (try --dtype fp32)");
}

}  // namespace dynslice
