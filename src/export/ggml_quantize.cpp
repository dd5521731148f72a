#include "export/ggml_quantize.h"

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <stdexcept>

namespace dynslice {
namespace {

template <typename Narrow>
bool narrow_all(std::span<const float> values, std::byte* out) {
  bool finite = true;
  for (const float value : values) {
    const Narrow narrow(value);
    finite = finite && std::isfinite(static_cast<float>(narrow));
    std::memcpy(out, &narrow, sizeof narrow);
    out += sizeof narrow;
  }
  return finite;
}

// 32 values: a half-precision scale, then 32 signed bytes.
bool quantize_q8_0_block(std::span<const float> values, std::byte* out) {
  float largest = 0;
  for (const float value : values) largest = std::max(largest, std::abs(value));
  const float scale = largest / 127.0F;
  const float inverse = scale != 0 ? 1.0F / scale : 0.0F;
  const c10::Half stored(scale);
  std::memcpy(out, &stored, sizeof stored);
  out += sizeof stored;
  for (const float value : values) *out++ = static_cast<std::byte>(static_cast<int8_t>(std::round(value * inverse)));
  return std::isfinite(static_cast<float>(stored));
}

}  // namespace

bool quantize(GgmlType type, std::span<const float> values, std::span<std::byte> blocks) {
  const GgmlFormat& format = ggml_format(type);
  const auto per_block = static_cast<size_t>(format.values), block_bytes = static_cast<size_t>(format.bytes);
  if (values.size() % per_block != 0 || blocks.size() != values.size() / per_block * block_bytes) {
    throw std::logic_error("quantize: values and blocks do not fit each other");
  }
  if (values.empty()) return true;
  switch (type) {
    case GgmlType::kF32:
      std::memcpy(blocks.data(), values.data(), blocks.size());
      return true;
    case GgmlType::kF16:
      return narrow_all<c10::Half>(values, blocks.data());
    case GgmlType::kBF16:
      return narrow_all<c10::BFloat16>(values, blocks.data());
    case GgmlType::kQ8_0:
      break;
    default:
      throw std::logic_error(std::string("quantize: ") + format.name + " is not among the types that are written");
  }
  bool finite = true;
  for (size_t block = 0; block * per_block < values.size(); ++block) {
    finite = quantize_q8_0_block(values.subspan(block * per_block, per_block), blocks.data() + block * block_bytes) &&
             finite;
  }
  return finite;
}

}  // namespace dynslice
