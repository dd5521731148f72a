#include <ATen/record_function.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <set>
#include <string>
#include <vector>

#include "aten.h"
#include "dynslice/tensor/kernels.h"

namespace dynslice {
namespace {

using ::testing::Each;
using ::testing::Ge;
using ::testing::SizeIs;

// bf16 keeps 8 bits: a rounding is off by 2^-9 of its value at most. Whether the processor or fp32 makes up for it, the
// sum before that rounding is fp32.
void expect_rounded(const at::Tensor& found, const at::Tensor& wide) {
  ASSERT_EQ(found.scalar_type(), at::kBFloat16);
  const at::Tensor error = (found.to(at::kDouble) - wide).abs(), allowed = wide.abs() / 256 + 1e-3;
  EXPECT_TRUE(error.le(allowed).all().item<bool>()) << (error / allowed).max().item<double>();
}

struct Factors {
  at::Tensor x, weight, bias;
};

Factors factors(int64_t rows, int64_t in, int64_t out) {
  at::manual_seed(4);
  const auto random = [](at::IntArrayRef sizes) { return at::randn(sizes).to(at::kBFloat16); };
  return {random({rows, in}), random({out, in}), random({out})};
}

at::Tensor wide_product(const Factors& of) {
  return at::linear(of.x.to(at::kDouble), of.weight.to(at::kDouble), of.bias.to(at::kDouble));
}

TEST(Products, OfBf16AreRoundedOnce) {
  const Factors of = factors(48, 96, 80);
  expect_rounded(kernels::linear(of.x, of.weight, of.bias), wide_product(of));
  expect_rounded(kernels::linear(of.x.view({2, 24, 96}), of.weight, of.bias), wide_product(of).view({2, 24, 80}));
  expect_rounded(kernels::matmul(of.x, of.weight.t()), wide_product({of.x, of.weight, at::zeros({80})}));
  const at::Tensor columns = of.x.t().contiguous().t();
  expect_rounded(kernels::matmul(columns, of.weight.t()), wide_product({of.x, of.weight, at::zeros({80})}));
}

// More rows of weights than are converted to fp32 at a time, where that is done.
TEST(Products, OfBf16WithManyRowsAreComplete) {
  const Factors of = factors(20, 8192, 2050);
  const at::Tensor found = kernels::linear(of.x, of.weight, of.bias), wide = wide_product(of);
  ASSERT_EQ(found.sizes(), wide.sizes());
  EXPECT_LT((found.to(at::kDouble) - wide).norm().item<double>(), 0.003 * wide.norm().item<double>());
}

// The dtypes of the first factors that reach LibTorch's operators for products during its lifetime.
class FactorDtypes {
 public:
  FactorDtypes() {
    seen().clear();
    handle_ = at::addThreadLocalCallback(at::RecordFunctionCallback(&note).needsInputs(true));
  }
  ~FactorDtypes() { at::removeCallback(handle_); }
  FactorDtypes(const FactorDtypes&) = delete;
  FactorDtypes& operator=(const FactorDtypes&) = delete;

  const std::vector<at::ScalarType>& values() const { return seen(); }

 private:
  // Operators are plain functions to their observers, so what they saw is kept beside the object.
  static std::vector<at::ScalarType>& seen() {
    static std::vector<at::ScalarType> dtypes;
    return dtypes;
  }
  static std::unique_ptr<at::ObserverContext> note(const at::RecordFunction& call) {
    static const std::set<std::string> products = {"aten::linear", "aten::matmul", "aten::mm",
                                                   "aten::addmm",  "aten::bmm",    "mkldnn::_linear_pointwise"};
    if (products.count(call.name()) == 0) return nullptr;
    for (const c10::IValue& input : call.inputs()) {
      if (!input.isTensor()) continue;
      seen().push_back(input.toTensor().scalar_type());
      break;
    }
    return nullptr;
  }

  at::CallbackHandle handle_;
};

// LibTorch multiplies bf16 in loops, which take over a thousand times as long, where oneDNN does not do it.
TEST(Products, OfBf16AreNotLeftToLoops) {
  const Factors of = factors(48, 96, 80);
  const at::Tensor columns = of.x.t().contiguous().t();
  const FactorDtypes dtypes;
  kernels::linear(of.x, of.weight, of.bias);
  kernels::linear(of.x.view({2, 24, 96}), of.weight, {});
  kernels::matmul(of.x, of.weight.t());
  kernels::matmul(columns, of.weight.t());
  EXPECT_THAT(dtypes.values(), SizeIs(Ge(4U)));
  EXPECT_THAT(dtypes.values(), Each(kernels::multiplies(at::kBFloat16) ? at::kBFloat16 : at::kFloat));
}

}  // namespace
}  // namespace dynslice
