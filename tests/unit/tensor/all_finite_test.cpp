#include <gtest/gtest.h>

#include <limits>

#include "aten.h"
#include "dynslice/tensor/kernels.h"

namespace dynslice {
namespace {

constexpr at::ScalarType kTypes[] = {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble};

// The largest finite values, both zeros, and numbers too small to be normal: more of them than one thread takes.
at::Tensor extremes(at::ScalarType dtype) {
  const double largest = dtype == at::kHalf ? 65504.0 : dtype == at::kBFloat16 ? 3.3895e38 : 3.4028e38;
  return at::tensor({largest, -largest, 0.0, -0.0, 1e-45, 6e-8, 1.0}).to(dtype).repeat({100'001});
}

TEST(AllFinite, HoldsForTheExtremesOfEveryDtype) {
  for (const at::ScalarType dtype : kTypes) EXPECT_TRUE(kernels::all_finite(extremes(dtype))) << dtype;
  EXPECT_TRUE(kernels::all_finite(at::empty({0}, at::kBFloat16)));
}

TEST(AllFinite, FindsOneNaNOrInfWhereverItIs) {
  constexpr double kInf = std::numeric_limits<double>::infinity();
  for (const at::ScalarType dtype : kTypes) {
    at::Tensor values = extremes(dtype);
    for (const int64_t place : {int64_t{0}, int64_t{300'000}, values.numel() - 1}) {
      for (const double bad : {std::numeric_limits<double>::quiet_NaN(), kInf, -kInf}) {
        const at::Tensor kept = values[place].clone();
        values[place].fill_(bad);
        EXPECT_FALSE(kernels::all_finite(values)) << dtype << " at " << place << ": " << bad;
        values[place].copy_(kept);
      }
    }
  }
}

TEST(AllFinite, LooksAtTheValuesOfAViewAlone) {
  at::Tensor values = at::zeros({4, 6}, at::kBFloat16);
  values[1][5].fill_(std::numeric_limits<double>::quiet_NaN());
  EXPECT_TRUE(kernels::all_finite(values.narrow(1, 0, 5)));
  EXPECT_FALSE(kernels::all_finite(values.t()));
}

}  // namespace
}  // namespace dynslice
