#include "jobs/ggml_types.h"

#include <cctype>

#include "dynslice/support/error.h"

namespace dynslice {
namespace {

std::string lower(std::string text) {
  for (char& letter : text) letter = static_cast<char>(std::tolower(static_cast<unsigned char>(letter)));
  return text;
}

}  // namespace

std::string ggml_type_name(GgmlType type) { return lower(ggml_format(type).name); }

GgmlType parse_ggml_type(const std::string& option, const std::string& name, std::span<const GgmlType> types) {
  std::string names;
  for (const GgmlType type : types) {
    if (lower(name) == ggml_type_name(type)) return type;
    names += (names.empty() ? "" : ", ") + ggml_type_name(type);
  }
  throw_error(ErrorKind::kUsage, option, " ", name, ": is not one of ", names);
}

GgmlType ggml_float_type(at::ScalarType dtype) {
  if (dtype == at::kFloat) return GgmlType::kF32;
  return dtype == at::kHalf ? GgmlType::kF16 : GgmlType::kBF16;
}

}  // namespace dynslice
