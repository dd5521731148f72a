#include "dynslice/tensor/dtype.h"

#include <gtest/gtest.h>

#include <stdexcept>

namespace dynslice {
namespace {

constexpr at::ScalarType kWeightDtypes[] = {at::kFloat, at::kBFloat16, at::kHalf};

TEST(Dtype, OfWeightsIsFoundAgainByItsNames) {
  for (const at::ScalarType dtype : kWeightDtypes) {
    EXPECT_EQ(weight_dtype_of_option(dtype_name(dtype)), dtype);
    EXPECT_EQ(weight_dtype_of_file(file_dtype_name(dtype)), dtype);
    EXPECT_EQ(dtype_of_file(file_dtype_name(dtype)), dtype);
  }
}

TEST(Dtype, HasTheNamesOfEveryPlace) {
  EXPECT_EQ(dtype_name(at::kBFloat16), "bf16");
  EXPECT_EQ(torch_dtype_name(at::kBFloat16), "bfloat16");
  EXPECT_EQ(file_dtype_name(at::kBFloat16), "BF16");
}

TEST(Dtype, OfFilesThatHoldNoWeightsIsKnownToFilesAlone) {
  EXPECT_EQ(dtype_of_file("I64"), at::kLong);
  EXPECT_EQ(weight_dtype_of_file("I64"), std::nullopt);
  EXPECT_EQ(dtype_name(at::kLong), "unknown");
  EXPECT_EQ(torch_dtype_name(at::kLong), "unknown");
}

TEST(Dtype, WithoutANameIsUnknown) {
  for (const char* name : {"", "unknown", "Q4_1", "f32", "fp64"}) {
    EXPECT_EQ(dtype_of_file(name), std::nullopt) << name;
    EXPECT_EQ(weight_dtype_of_option(name), std::nullopt) << name;
  }
  EXPECT_THROW(static_cast<void>(file_dtype_name(at::kComplexFloat)), std::logic_error);
}

// The sizes that the format's own documentation says.
TEST(Dtype, OfFilesHasTheBytesOfItsName) {
  for (const char* name : {"F64", "I64", "U64"}) EXPECT_EQ(c10::elementSize(dtype_of_file(name).value()), 8U) << name;
  for (const char* name : {"F32", "I32", "U32"}) EXPECT_EQ(c10::elementSize(dtype_of_file(name).value()), 4U) << name;
  for (const char* name : {"F16", "BF16", "I16", "U16"}) {
    EXPECT_EQ(c10::elementSize(dtype_of_file(name).value()), 2U) << name;
  }
  for (const char* name : {"I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2"}) {
    EXPECT_EQ(c10::elementSize(dtype_of_file(name).value()), 1U) << name;
  }
}

}  // namespace
}  // namespace dynslice
