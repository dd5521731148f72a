#include "dynslice/model/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace dynslice {
namespace {

// What the inverse frequency of a pair is divided by.
double divisor_of(const RopeConfig& rope, size_t pair, int64_t channels, int64_t positions, float frequency) {
  if (!rope.frequency_divisors.empty()) return static_cast<float>(rope.frequency_divisors[pair]);
  if (rope.scaling == RopeScalingKind::kLinear) return static_cast<float>(rope.factor);
  if (rope.scaling == RopeScalingKind::kLlama3) return llama3_divisor(rope, 2 * std::numbers::pi / frequency);
  if (rope.scaling == RopeScalingKind::kYarn) return yarn_divisor(rope, static_cast<int64_t>(pair), channels);
  if (rope.scaling == RopeScalingKind::kLongRope) {
    const bool is_long = positions > rope.original_max_position_embeddings;
    return static_cast<float>((is_long ? rope.long_divisors : rope.short_divisors)[pair]);
  }
  return 1;
}

}  // namespace

double yarn_attention_factor(double factor) { return factor <= 1 ? 1 : 0.1 * std::log(factor) + 1; }

double longrope_attention_factor(double factor, int64_t original) {
  return factor <= 1 ? 1 : std::sqrt(1 + std::log(factor) / std::log(static_cast<double>(original)));
}

double yarn_divisor(const RopeConfig& rope, int64_t pair, int64_t channels) {
  const auto width = static_cast<double>(channels);
  // The pair that turns so often within the original length, counted in fractions.
  const auto pair_of = [&](double turns) {
    const double length = static_cast<double>(rope.original_max_position_embeddings);
    return width * std::log(length / (turns * 2 * std::numbers::pi)) / (2 * std::log(rope.theta));
  };
  double low = pair_of(rope.beta_fast), high = pair_of(rope.beta_slow);
  if (rope.truncates) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, width - 1);
  if (low == high) high += 0.001;
  const double stretched = std::clamp((static_cast<double>(pair) - low) / (high - low), 0.0, 1.0);
  return 1 / (stretched / rope.factor + 1 - stretched);
}

double llama3_divisor(const RopeConfig& rope, double wavelength) {
  const double turns = static_cast<double>(rope.original_max_position_embeddings) / wavelength;
  if (turns > rope.high_freq_factor) return 1.0;
  if (turns < rope.low_freq_factor) return rope.factor;
  const double smooth = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor);
  return 1.0 / ((1.0 - smooth) / rope.factor + smooth);
}

std::vector<float> inverse_frequencies(const RopeConfig& rope, int64_t channels, int64_t positions) {
  std::vector<float> frequencies;
  for (int64_t pair = 0; pair < channels / 2; ++pair) {
    if (static_cast<double>(2 * pair + 2) > rope.turning_share * static_cast<double>(channels)) {
      frequencies.push_back(0);
      continue;
    }
    const float exponent = static_cast<float>(2 * pair) / static_cast<float>(channels);
    const float frequency = 1.0F / std::pow(static_cast<float>(rope.theta), exponent);
    frequencies.push_back(
        static_cast<float>(frequency / divisor_of(rope, static_cast<size_t>(pair), channels, positions, frequency)));
  }
  return frequencies;
}

}  // namespace dynslice
