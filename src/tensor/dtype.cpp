#include "dynslice/tensor/dtype.h"

#include <algorithm>
#include <array>
#include <span>

#include "dynslice/support/check.h"

namespace dynslice {
namespace {

struct Dtype {
  at::ScalarType dtype;
  std::string_view file, torch, option;
};

constexpr std::array kDtypes = std::to_array<Dtype>({
    {at::ScalarType::Float, "F32", "float32", "fp32"},
    {at::ScalarType::BFloat16, "BF16", "bfloat16", "bf16"},
    {at::ScalarType::Half, "F16", "float16", "fp16"},
    // Of no weights that are computed with.
    {at::ScalarType::Double, "F64", "unknown", "fp64"},
    {at::ScalarType::Long, "I64", "unknown", "unknown"},
    {at::ScalarType::Int, "I32", "unknown", "unknown"},
    {at::ScalarType::Short, "I16", "unknown", "unknown"},
    {at::ScalarType::Char, "I8", "unknown", "unknown"},
    {at::ScalarType::UInt64, "U64", "unknown", "unknown"},
    {at::ScalarType::UInt32, "U32", "unknown", "unknown"},
    {at::ScalarType::UInt16, "U16", "unknown", "unknown"},
    {at::ScalarType::Byte, "U8", "unknown", "unknown"},
    {at::ScalarType::Bool, "BOOL", "unknown", "unknown"},
    {at::ScalarType::Float8_e4m3fn, "F8_E4M3", "unknown", "unknown"},
    {at::ScalarType::Float8_e5m2, "F8_E5M2", "unknown", "unknown"},
});
constexpr std::span<const Dtype> kWeightDtypes = std::span(kDtypes).first(3);

const Dtype* find(at::ScalarType dtype) {
  const auto* found = std::ranges::find(kDtypes, dtype, &Dtype::dtype);
  return found == kDtypes.end() ? nullptr : found;
}

std::optional<at::ScalarType> find(std::span<const Dtype> dtypes, std::string_view Dtype::* kind,
                                   std::string_view name) {
  const auto found = std::ranges::find(dtypes, name, kind);
  return found == dtypes.end() ? std::nullopt : std::optional(found->dtype);
}

}  // namespace

std::string dtype_name(at::ScalarType dtype) {
  const Dtype* found = find(dtype);
  return std::string(found == nullptr ? "unknown" : found->option);
}

std::string torch_dtype_name(at::ScalarType dtype) {
  const Dtype* found = find(dtype);
  return std::string(found == nullptr ? "unknown" : found->torch);
}

std::string file_dtype_name(at::ScalarType dtype) {
  const Dtype* found = find(dtype);
  DYNSLICE_CHECK(found != nullptr, "a tensor of ", c10::toString(dtype), " in a file");
  return std::string(found->file);
}

std::optional<at::ScalarType> dtype_of_file(std::string_view name) { return find(kDtypes, &Dtype::file, name); }
std::optional<at::ScalarType> weight_dtype_of_file(std::string_view name) {
  return find(kWeightDtypes, &Dtype::file, name);
}
std::optional<at::ScalarType> weight_dtype_of_option(std::string_view name) {
  return find(kWeightDtypes, &Dtype::option, name);
}

}  // namespace dynslice
