#include "dynslice/quantize/gptq.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "aten.h"
#include "dynslice/support/error.h"
#include "test_device.h"

namespace dynslice {
namespace {

// Inputs with a few strong directions, as activations have them.
at::Tensor correlated_inputs(int64_t tokens, int64_t columns) {
  const at::Tensor strength = at::logspace(0.5, -1.5, columns, 10.0, at::kDouble);
  const at::Tensor mix = at::randn({columns, columns}, at::kDouble) / std::sqrt(static_cast<double>(columns));
  return at::matmul(at::randn({tokens, columns}, at::kDouble) * strength, mix) +
         0.1 * at::randn({tokens, columns}, at::kDouble);
}

at::Tensor moment_of(const at::Tensor& x) { return at::matmul(x.t(), x); }

double output_error(const at::Tensor& weight, const QuantizedMatrix& matrix, const at::Tensor& moment) {
  const at::Tensor error = weight.to(at::kDouble) - matrix.values().to(at::kDouble);
  return (at::matmul(error, moment) * error).sum().item<double>();
}

struct Case {
  const char* name;
  int bits;
  int64_t group;
  bool symmetric;
};

class EveryIntegerFormat : public ::testing::TestWithParam<Case> {
 protected:
  QuantFormat format() const {
    QuantFormat format;
    format.bits = GetParam().bits;
    format.group_size = GetParam().group;
    format.symmetric = GetParam().symmetric;
    format.scale_dtype = at::kFloat;
    return format;
  }
};

TEST_P(EveryIntegerFormat, RoundsEveryWeightToTheNearestValueOfItsGrid) {
  at::manual_seed(1);
  const at::Tensor weight = at::randn({9, 384}) * 0.05;
  const QuantizedMatrix matrix = round_to_nearest(weight, format());
  const int64_t groups = matrix.scales.size(1);
  ASSERT_EQ(groups, format().group_size > 0 ? 384 / format().group_size : 1);
  const at::Tensor step = matrix.scales.repeat_interleave(384 / groups, 1);
  // A symmetric grid ends half a step below the largest magnitude.
  EXPECT_LE(((weight - matrix.values()).abs() / step).max().item<float>(), 0.5F + 1e-3F);
  EXPECT_LT(matrix.codes.max().item<int>(), 1 << format().bits);
}

TEST_P(EveryIntegerFormat, GptqWithIndependentInputsFindsNoWorseGridsThanTheRange) {
  at::manual_seed(2);
  const at::Tensor weight = at::randn({6, 384}) * 0.05, moment = at::eye(384, at::kDouble);
  const Gptq gptq(moment.clone(), grid_unit(format(), 384), {});
  const double searched = output_error(weight, gptq.quantize(weight, format()), moment);
  EXPECT_LE(searched, output_error(weight, round_to_nearest(weight, format()), moment) * (1 + 1e-6));
}

TEST_P(EveryIntegerFormat, GptqLosesLessThanRoundingWhereInputsAreCorrelated) {
  at::manual_seed(3);
  const at::Tensor weight = at::randn({40, 384}) * 0.05, moment = moment_of(correlated_inputs(600, 384));
  const double rounded = output_error(weight, round_to_nearest(weight, format()), moment);
  for (const bool act_order : {false, true}) {
    const Gptq gptq(moment.clone(), grid_unit(format(), 384), {.act_order = act_order});
    EXPECT_LT(output_error(weight, gptq.quantize(weight, format()), moment), 0.7 * rounded) << act_order;
  }
}

TEST_P(EveryIntegerFormat, GptqDoesNotDependOnThreadsNorOnTheOtherRows) {
  at::manual_seed(4);
  const at::Tensor weight = at::randn({13, 384}) * 0.05;
  const Gptq gptq(moment_of(correlated_inputs(500, 384)), grid_unit(format(), 384), {});
  const at::Tensor values = gptq.quantize(weight, format()).values();
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  EXPECT_TRUE(gptq.quantize(weight, format()).values().equal(values));
  at::set_num_threads(threads);
  // Another number of rows may take another matrix product, and with it another rounding here and there.
  const at::Tensor part = gptq.quantize(weight.narrow(0, 3, 5), format()).values();
  EXPECT_GT(part.eq(values.narrow(0, 3, 5)).to(at::kFloat).mean().item<float>(), 0.95F);
}

INSTANTIATE_TEST_SUITE_P(Quantize, EveryIntegerFormat,
                         ::testing::Values(Case{"EightBits", 8, 128, false}, Case{"FourBits", 4, 128, false},
                                           Case{"FourBitsSymmetric", 4, 64, true}, Case{"ThreeBits", 3, 32, false},
                                           Case{"ThreeBitsRow", 3, 0, false}, Case{"TwoBits", 2, 64, false},
                                           Case{"TwoBitsRowSymmetric", 2, 0, true}),
                         [](const auto& instance) { return instance.param.name; });

class EveryBlockFormat : public ::testing::TestWithParam<GgmlType> {
 protected:
  QuantFormat format() const { return {.bits = 4, .block_type = GetParam()}; }
};

TEST_P(EveryBlockFormat, GptqLosesLessThanRoundingWhereInputsAreCorrelated) {
  at::manual_seed(7);
  const at::Tensor weight = at::randn({24, 512}) * 0.05, moment = moment_of(correlated_inputs(700, 512));
  const double rounded = output_error(weight, round_to_nearest(weight, format()), moment);
  const Gptq gptq(moment.clone(), grid_unit(format(), 512), {});
  EXPECT_LT(output_error(weight, gptq.quantize(weight, format()), moment), 0.7 * rounded);
}

TEST_P(EveryBlockFormat, HoldsRowsThatComeBackAlone) {
  at::manual_seed(8);
  const at::Tensor weight = at::randn({7, 512}) * 0.05;
  const QuantizedMatrix matrix = round_to_nearest(weight, format());
  EXPECT_TRUE(matrix.narrow(2, 3).values().equal(matrix.values().narrow(0, 2, 3)));
  EXPECT_EQ(matrix.blocks.size(1), static_cast<int64_t>(stored_bits(format(), 512) * 512 / 8));
}

TEST_P(EveryBlockFormat, TakesWeightsThatAreAllZero) {
  const at::Tensor weight = at::zeros({2, 512});
  const Gptq gptq(at::eye(512, at::kDouble), grid_unit(format(), 512), {});
  EXPECT_TRUE(gptq.quantize(weight, format()).values().equal(weight));
}

INSTANTIATE_TEST_SUITE_P(Quantize, EveryBlockFormat,
                         ::testing::Values(GgmlType::kQ8_0, GgmlType::kQ6_K, GgmlType::kQ5_K, GgmlType::kQ5_1,
                                           GgmlType::kQ5_0, GgmlType::kQ4_K, GgmlType::kQ4_1, GgmlType::kQ4_0,
                                           GgmlType::kQ3_K, GgmlType::kQ2_K),
                         [](const auto& instance) { return ggml_format(instance.param).name; });

// GPTQ as its paper has it: columns in order, the inverse's upper Cholesky factor, grids of whole rows fixed before.
at::Tensor textbook_gptq(const at::Tensor& weight, at::Tensor moment, double damping, const at::Tensor& scale,
                         const at::Tensor& zero, int top) {
  moment = moment.clone();
  moment.diagonal().add_(damping * moment.diagonal().mean().item<double>());
  const at::Tensor factor = at::linalg_cholesky(at::linalg_inv(moment), /*upper=*/true);
  at::Tensor left = weight.to(at::kDouble).clone();
  at::Tensor codes = at::empty(weight.sizes(), at::kByte);
  for (int64_t j = 0; j < weight.size(1); ++j) {
    const at::Tensor code = (left.select(1, j) / scale + zero).round().clamp(0, top);
    codes.select(1, j).copy_(code);
    const at::Tensor error = (left.select(1, j) - (code - zero) * scale) / factor[j][j];
    left.sub_(at::outer(error, factor[j]));
  }
  return codes;
}

TEST(Gptq, GivesTheCodesOfTheTextbookProcedure) {
  at::manual_seed(5);
  const at::Tensor weight = at::randn({30, 320}) * 0.05, moment = moment_of(correlated_inputs(800, 320));
  QuantFormat format;
  format.bits = 4;
  format.group_size = 0;
  format.scale_dtype = at::kFloat;
  const QuantizedMatrix matrix =
      Gptq(moment.clone(), grid_unit(format, 320), {.act_order = false}).quantize(weight, format);
  const at::Tensor expected = textbook_gptq(weight, moment, 0.01, matrix.scales.select(1, 0).to(at::kDouble),
                                            matrix.zero_points.select(1, 0).to(at::kDouble), 15);
  // Ours rounds in fp32; a value near the middle between two codes may fall to the other side, and what follows in its
  // row with it.
  EXPECT_GT(matrix.codes.eq(expected).to(at::kFloat).mean().item<float>(), 0.98F);
}

class CudaGptq : public testing::OnDevice {};

TEST_F(CudaGptq, LosesAsLittleAsOnTheCpu) {
  at::manual_seed(5);
  const at::Tensor weight = at::randn({24, 256}), moment = moment_of(correlated_inputs(2048, 256));
  const QuantFormat format{.bits = 3, .group_size = 64, .scale_dtype = at::kFloat};
  const auto error = [&](at::Device device) {
    return output_error(weight, Gptq(moment.to(device, at::kDouble, false, true), 64, {}).quantize(weight, format),
                        moment);
  };
  // A factor that differs in its last bits rounds a few weights otherwise.
  const double expected = error(at::kCPU);
  EXPECT_NEAR(error(device_), expected, 0.01 * expected);
}

TEST(Gptq, OfInputsThatAreAllZeroRoundsToTheNearest) {
  at::manual_seed(6);
  const at::Tensor weight = at::randn({5, 128}) * 0.05;
  const QuantFormat format;
  const Gptq gptq(at::zeros({128, 128}, at::kDouble), grid_unit(format, 128), {});
  const at::Tensor error = (gptq.quantize(weight, format).values() - weight).abs();
  EXPECT_LT(error.max().item<float>(), 0.05F);
}

TEST(QuantFormat, RefusesWhatDoesNotFitTheRows) {
  QuantFormat format;
  EXPECT_NO_THROW(check_format(format, 256, "here"));
  EXPECT_THROW(check_format(format, 576, "here"), Error);
  format.group_size = 0;
  EXPECT_NO_THROW(check_format(format, 577, "here"));
  format.bits = 9;
  EXPECT_THROW(check_format(format, 576, "here"), Error);
}

TEST(QuantFormat, RefusesWeightsThatItsScalesCannotHold) {
  const at::Tensor weight = at::full({1, 128}, 3e6);
  EXPECT_THROW(round_to_nearest(weight, QuantFormat{}), Error);
}

TEST(QuantFormat, TakesWeightsThatAreNextToNothing) {
  at::Tensor weight = at::zeros({2, 64});
  weight[0][3] = 1e-40F;
  weight[1][5] = 0.5F;
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    const QuantFormat format{.bits = 4, .group_size = 32, .scale_dtype = dtype};
    for (const QuantizedMatrix& matrix :
         {round_to_nearest(weight, format), Gptq(at::eye(64, at::kDouble), 32, {}).quantize(weight, format)}) {
      EXPECT_TRUE(at::isfinite(matrix.values()).all().item<bool>());
      EXPECT_LT((matrix.values() - weight).abs().max().item<float>(), 0.04F);
    }
  }
}

TEST(QuantFormat, CountsScalesAndZeroPoints) {
  EXPECT_DOUBLE_EQ(stored_bits({.bits = 4, .group_size = 128}, 4096), 4 + 20.0 / 128);
  EXPECT_DOUBLE_EQ(stored_bits({.bits = 4, .group_size = 0, .symmetric = true}, 4096), 4 + 16.0 / 4096);
  EXPECT_DOUBLE_EQ(stored_bits({.bits = 4, .block_type = GgmlType::kQ4_K}, 4096), 4.5);
}

}  // namespace
}  // namespace dynslice
