// Rotary position embedding: how far each pair of a head's coordinates turns from one position to the next.
#pragma once

#include <cstdint>
#include <vector>

#include "dynslice/model/config.h"

namespace dynslice {

// What the llama3 scaling divides the inverse frequency of a pair by, whose unscaled wavelength (in positions) is
// given: long wavelengths are stretched by the factor, short ones are kept, those between are interpolated.
[[nodiscard]] double llama3_divisor(const RopeConfig& rope, double wavelength);

// What YaRN (arXiv 2309.00071, section 3.2) divides the inverse frequency of a pair by: pairs of long wavelengths are
// stretched by the factor, those of short ones kept, those between interpolated.
[[nodiscard]] double yarn_divisor(const RopeConfig& rope, int64_t pair, int64_t channels);

// YaRN's own attention factor, where a configuration gives none.
[[nodiscard]] double yarn_attention_factor(double factor);

// LongRoPE's attention factor (arXiv 2402.13753), where a configuration gives none: `factor` is by how much the context
// is longer than the original one.
[[nodiscard]] double longrope_attention_factor(double factor, int64_t original);

// The scaled inverse frequencies of the pairs of so many rotated channels [radians a position], in fp32 as the models
// were trained, for contexts of so many positions.
[[nodiscard]] std::vector<float> inverse_frequencies(const RopeConfig& rope, int64_t channels, int64_t positions = 0);

}  // namespace dynslice
