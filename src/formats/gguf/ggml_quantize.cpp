#include "dynslice/formats/gguf/ggml_quantize.h"

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "dynslice/support/check.h"
#include "dynslice/tensor/multiversion.h"
#include "formats/gguf/ggml_block_bytes.h"
#include "formats/gguf/ggml_fit.h"
#include "formats/gguf/ggml_layout.h"

namespace dynslice {
namespace {

using namespace ggml;

// The grid as a decoder computes it. Products fit 24 bits (see ggml_dequantize.cpp).
void expand(const Layout& layout, const BlockGrid& grid, std::span<float> scales, std::span<float> offsets) {
  for (size_t g = 0; g < scales.size(); ++g) {
    scales[g] = layout.is_k() ? grid.scale * static_cast<float>(grid.scale_multiple[g]) : grid.scale;
    if (layout.has_offset) {
      offsets[g] = layout.is_k() ? -(grid.offset * static_cast<float>(grid.offset_multiple[g])) : grid.offset;
    } else {
      offsets[g] = -(scales[g] * static_cast<float>(layout.zero));
    }
  }
}

uint8_t* bytes_of(std::span<std::byte> block) { return reinterpret_cast<uint8_t*>(block.data()); }

// Levels are rounded, not codes: where the scale is 0 the code is that of zero.
DYNSLICE_MULTIVERSION
void nearest_codes(const float* values, int count, float scale, float base, int zero, int codes, uint8_t* out) {
  const float inverse = scale != 0 ? 1.0F / scale : 0.0F;
  const auto lowest = static_cast<float>(-zero), highest = static_cast<float>(codes - 1 - zero);
#pragma omp simd
  for (int i = 0; i < count; ++i) {
    out[i] =
        static_cast<uint8_t>(static_cast<int>(nearest_level((values[i] - base) * inverse, lowest, highest)) + zero);
  }
}

bool quantize_block(GgmlType type, const Layout& layout, std::span<const float> values, std::span<std::byte> block) {
  std::array<float, kMostGroups> scales{}, offsets{};
  std::array<uint8_t, kMostValues> codes{};
  const auto groups = static_cast<size_t>(layout.groups()),
             group_values = static_cast<size_t>(layout.grid.group_values);
  if (!fit_block(type, values, {}, block, std::span(scales).first(groups), std::span(offsets).first(groups))) {
    return false;
  }
  for (size_t g = 0; g < groups; ++g) {
    nearest_codes(values.data() + g * group_values, static_cast<int>(group_values), scales[g],
                  layout.has_offset ? offsets[g] : 0.0F, layout.zero, layout.grid.codes,
                  codes.data() + g * group_values);
  }
  put_codes(type, codes.data(), bytes_of(block));
  return true;
}

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

// What stands in for a type with blocks of 256 values.
GgmlType with_small_blocks(GgmlType type) {
  switch (type) {
    case GgmlType::kQ2_K:
    case GgmlType::kQ3_K:
      return GgmlType::kQ4_0;
    case GgmlType::kQ4_K:
      return GgmlType::kQ5_0;
    case GgmlType::kQ5_K:
      return GgmlType::kQ5_1;
    case GgmlType::kQ6_K:
      return GgmlType::kQ8_0;
    default:
      return type;
  }
}

}  // namespace

GgmlType type_for_rows(GgmlType wanted, int64_t columns) {
  for (const GgmlType type : {wanted, with_small_blocks(wanted)}) {
    if (columns % ggml_format(type).values == 0) return type;
  }
  return GgmlType::kF16;
}

bool is_quantized(GgmlType type) { return type != GgmlType::kF32 && type != GgmlType::kF16 && type != GgmlType::kBF16; }

GgmlGrid ggml_grid(GgmlType type) { return layout_of(type).grid; }

bool fit_block(GgmlType type, std::span<const float> values, std::span<const float> weights, std::span<std::byte> block,
               std::span<float> scales, std::span<float> offsets) {
  const Layout& layout = layout_of(type);
  const auto block_values = static_cast<size_t>(layout.grid.block_values);
  const auto groups = static_cast<size_t>(layout.groups());
  DYNSLICE_CHECK(values.size() == block_values && (weights.empty() || weights.size() == block_values) &&
                     block.size() == static_cast<size_t>(ggml_format(type).bytes) && scales.size() == groups &&
                     offsets.size() == groups,
                 "fit_block: the sizes are not those of one block");
  BlockGrid grid;
  const bool fits = fit_grid(layout, values, weights, grid);
  if (!fits) grid = {};
  std::ranges::fill(block, std::byte{0});
  put_scales(type, grid, bytes_of(block));
  expand(layout, grid, scales, offsets);
  return fits;
}

void store_codes(GgmlType type, std::span<const uint8_t> codes, std::span<std::byte> block) {
  const Layout& layout = layout_of(type);
  DYNSLICE_CHECK(codes.size() == static_cast<size_t>(layout.grid.block_values) &&
                     block.size() == static_cast<size_t>(ggml_format(type).bytes),
                 "store_codes: the sizes are not those of one block");
  put_codes(type, codes.data(), bytes_of(block));
}

bool quantize(GgmlType type, std::span<const float> values, std::span<std::byte> blocks) {
  const GgmlFormat& format = ggml_format(type);
  const auto per_block = static_cast<size_t>(format.values), block_bytes = static_cast<size_t>(format.bytes);
  DYNSLICE_CHECK(values.size() % per_block == 0 && blocks.size() == values.size() / per_block * block_bytes,
                 "quantize: values and blocks do not fit each other");
  if (values.empty()) return true;
  if (type == GgmlType::kF32) {
    std::memcpy(blocks.data(), values.data(), blocks.size());
    return true;
  }
  if (type == GgmlType::kF16) return narrow_all<c10::Half>(values, blocks.data());
  if (type == GgmlType::kBF16) return narrow_all<c10::BFloat16>(values, blocks.data());
  const Layout& layout = layout_of(type);
  bool fits = true;
  for (size_t i = 0; i * per_block < values.size(); ++i) {
    fits = quantize_block(type, layout, values.subspan(i * per_block, per_block),
                          blocks.subspan(i * block_bytes, block_bytes)) &&
           fits;
  }
  return fits;
}

}  // namespace dynslice
