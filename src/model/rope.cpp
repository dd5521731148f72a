#include "dynslice/model/rope.h"

#include <cmath>
#include <numbers>

namespace dynslice {
namespace {

// What the inverse frequency of a pair is divided by.
double divisor_of(const RopeConfig& rope, size_t pair, float frequency) {
  if (!rope.frequency_divisors.empty()) return static_cast<float>(rope.frequency_divisors[pair]);
  if (rope.scaling == RopeScalingKind::kLinear) return static_cast<float>(rope.factor);
  if (rope.scaling == RopeScalingKind::kLlama3) return llama3_divisor(rope, 2 * std::numbers::pi / frequency);
  return 1;
}

}  // namespace

double llama3_divisor(const RopeConfig& rope, double wavelength) {
  const double turns = static_cast<double>(rope.original_max_position_embeddings) / wavelength;
  if (turns > rope.high_freq_factor) return 1.0;
  if (turns < rope.low_freq_factor) return rope.factor;
  const double smooth = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor);
  return 1.0 / ((1.0 - smooth) / rope.factor + smooth);
}

std::vector<float> inverse_frequencies(const RopeConfig& rope, int64_t head_dim) {
  std::vector<float> frequencies;
  for (int64_t pair = 0; pair < head_dim / 2; ++pair) {
    const float exponent = static_cast<float>(2 * pair) / static_cast<float>(head_dim);
    const float frequency = 1.0F / std::pow(static_cast<float>(rope.theta), exponent);
    frequencies.push_back(static_cast<float>(frequency / divisor_of(rope, static_cast<size_t>(pair), frequency)));
  }
  return frequencies;
}

}  // namespace dynslice
