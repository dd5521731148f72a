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
[[nodiscard]] double yarn_divisor(const RopeConfig& rope, int64_t pair, int64_t head_dim);

// YaRN's own attention factor, where a configuration gives none.
[[nodiscard]] double yarn_attention_factor(double factor);

// The scaled inverse frequencies of the head_dim/2 pairs [radians a position], in fp32 as the models were trained.
[[nodiscard]] std::vector<float> inverse_frequencies(const RopeConfig& rope, int64_t head_dim);

}  // namespace dynslice
