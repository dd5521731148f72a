#include "formats/gguf/ggml_fit.h"

#include <c10/util/Half.h>

#include <cmath>
#include <limits>

#include "dynslice/formats/gguf/ggml_dequantize.h"
#include "dynslice/tensor/multiversion.h"

// How a grid is found. Nothing is solved in closed form: the squared error is a rugged function of the scale, since
// every code jumps somewhere. Instead sixteen grids are tried side by side, one in each lane of a vector; each gives
// its true error and the scale and offset that would suit its codes best (least squares), which are tried in the next
// round. In the K formats the groups are fitted first, each on its own. Then come the super-scales, which all groups
// share, and with these every group tries its integer sub-scales again, this time as the decoder will see them.

namespace dynslice::ggml {
namespace {

constexpr int kLanes = 16;
// Twice what the widest format reaches (65504 · 128 · 32); the squares of such values are still far from overflow.
constexpr float kTooLarge = 0x1p29F;
// Below half of the smallest step, 2^-24, all codes are that of zero.
constexpr float kNothing = 0x1p-25F;

float inverse_of(float x) { return x != 0 ? 1.0F / x : 0.0F; }

uint16_t half_bits(float x) { return c10::Half(x).x; }
float as_half(float x) { return half_to_float(half_bits(x)); }

constexpr float kLargestHalf = 65504.0F;
constexpr float kLeastHalf = 0x1p-24F;
// Below it half precision has fewer bits, so that it matters which neighbour a number is rounded to.
constexpr float kLeastNormalHalf = 0x1p-14F;

// A number as half precision has it, neither infinite nor, unless it is 0, rounded to 0.
float as_scale(float x) {
  const float magnitude = as_half(std::clamp(std::abs(x), kLeastHalf, kLargestHalf));
  return x != 0 ? std::copysign(magnitude, x) : 0.0F;
}

// The half-precision number `steps` further from zero, at most the largest and at least zero.
float beside(uint16_t half, int steps) {
  constexpr int kLargestBits = 0x7BFF;
  const int magnitude = std::clamp((half & 0x7FFF) + steps, 0, kLargestBits);
  return half_to_float(static_cast<uint16_t>((half & 0x8000) | magnitude));
}

// ---- Trials ----------------------------------------------------------------------------------------------------

// The values that share a scale.
struct Group {
  const float* values;
  const float* weights;
  int count;
};

// Grids of one group that are tried side by side, and what comes of them.
struct Trials {
  alignas(64) float scale[kLanes];
  alignas(64) float base[kLanes];  // the value of level 0
  // Σ w (v - v̂)² with the nearest levels l, and sums for least squares: with d = v - base, Σ w l, w l², w d, w d l.
  alignas(64) float error[kLanes];
  alignas(64) float level[kLanes], level_squared[kLanes], rest[kLanes], rest_level[kLanes];
  int best = 0;  // the lane with the smallest error
};

// The position of the smallest of some numbers that are not negative, but for differences in their last bits: lane
// numbers take the place of these.
inline int smallest_of(const float* x) {
  int32_t least = std::numeric_limits<int32_t>::max();
  for (int lane = 0; lane < kLanes; ++lane) {
    least = std::min(least, (std::bit_cast<int32_t>(x[lane]) & -kLanes) | lane);
  }
  return least % kLanes;
}

DYNSLICE_MULTIVERSION
void evaluate(const Group& group, float lowest, float highest, Trials& trials) {
  alignas(64) float scale[kLanes], base[kLanes], inverse[kLanes];
  alignas(64) float error[kLanes] = {}, level_sum[kLanes] = {}, level_squared[kLanes] = {};
  alignas(64) float rest_sum[kLanes] = {}, rest_level[kLanes] = {};
  for (int lane = 0; lane < kLanes; ++lane) {
    scale[lane] = trials.scale[lane];
    base[lane] = trials.base[lane];
    inverse[lane] = scale[lane] != 0 ? 1.0F / scale[lane] : 0.0F;
  }
  for (int i = 0; i < group.count; ++i) {
    const float value = group.values[i], weight = group.weights[i];
#pragma omp simd
    for (int lane = 0; lane < kLanes; ++lane) {
      const float rest = value - base[lane];
      const float level = nearest_level(rest * inverse[lane], lowest, highest);
      const float missed = rest - scale[lane] * level;
      const float weighted_rest = weight * rest, weighted_level = weight * level;
      error[lane] += weight * (missed * missed);
      level_sum[lane] += weighted_level;
      level_squared[lane] += weighted_level * level;
      rest_sum[lane] += weighted_rest;
      rest_level[lane] += weighted_rest * level;
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    trials.error[lane] = error[lane];
    trials.level[lane] = level_sum[lane];
    trials.level_squared[lane] = level_squared[lane];
    trials.rest[lane] = rest_sum[lane];
    trials.rest_level[lane] = rest_level[lane];
  }
  trials.best = smallest_of(error);
}

// Scale and base of a group, and the error that they make.
struct Fit {
  float scale = 0, base = 0;
  float error = 0;
};

void take_best(const Trials& trials, Fit& best) {
  const int lane = trials.best;
  if (trials.error[lane] < best.error) best = {trials.scale[lane], trials.base[lane], trials.error[lane]};
}

// The scale that suits the levels best.
DYNSLICE_MULTIVERSION
void refit_scales(Trials& trials) {
  for (int lane = 0; lane < kLanes; ++lane) {
    const float squares = trials.level_squared[lane];
    trials.scale[lane] = squares > 0 ? trials.rest_level[lane] / squares : trials.scale[lane];
  }
}

// Scale and base that suit the levels best; the base at most `highest_base`.
DYNSLICE_MULTIVERSION
void refit_lines(float weight_sum, float highest_base, Trials& trials) {
  for (int lane = 0; lane < kLanes; ++lane) {
    const float level = trials.level[lane], squares = trials.level_squared[lane], rest = trials.rest[lane];
    const float base = trials.base[lane], product = trials.rest_level[lane];
    const float determinant = weight_sum * squares - level * level;
    // With one level for all values the scale says nothing.
    const float scale = determinant > 1e-6F * weight_sum * squares ? (weight_sum * product - rest * level) / determinant
                                                                   : trials.scale[lane];
    const float free_base = base + (rest - scale * level) / weight_sum;
    const float bound_scale = squares > 0 ? (product + (base - highest_base) * level) / squares : scale;
    trials.base[lane] = free_base > highest_base ? highest_base : free_base;
    trials.scale[lane] = free_base > highest_base ? bound_scale : scale;
  }
}

// ---- One group on its own --------------------------------------------------------------------------------------

float largest_of(const Group& group) {
  float largest = 0;
  for (int i = 0; i < group.count; ++i) {
    largest = std::abs(group.values[i]) > std::abs(largest) ? group.values[i] : largest;
  }
  return largest;
}

float weight_of(const Group& group) {
  float sum = 0;
  for (int i = 0; i < group.count; ++i) sum += group.weights[i];
  return sum;
}

// The j-th of kLanes numbers from `first` to `last`.
float between(float first, float last, int j) {
  return first + (last - first) * static_cast<float>(j) / static_cast<float>(kLanes - 1);
}

// The root of the weighted mean of (v - centre)².
float deviation_of(const Group& group, float centre, float weight_sum) {
  float sum = 0;
  for (int i = 0; i < group.count; ++i) {
    const float rest = group.values[i] - centre;
    sum += group.weights[i] * rest * rest;
  }
  return std::sqrt(sum / weight_sum);
}

float mean_of(const Group& group, float weight_sum) {
  float sum = 0;
  for (int i = 0; i < group.count; ++i) sum += group.weights[i] * group.values[i];
  return sum / weight_sum;
}

// With weights, the largest values may matter little: grids are tried that reach this many deviations far, and then
// those around the best one, whose scales are this many times as large.
constexpr float kFewestDeviations = 1.2F, kMostDeviations = 4.2F;
constexpr float kNarrower = 0.88F, kWider = 1.12F;

// scale * level.
Fit fit_symmetric(const Group& group, const Layout& layout, bool weighted) {
  Fit best{0, 0, HUGE_VALF};
  const float largest = largest_of(group);
  if (largest == 0) return {};
  Trials trials{};
  const auto rounds = [&] {
    for (int round = 0; round < 2; ++round) {
      if (round > 0) refit_scales(trials);
      evaluate(group, layout.lowest(), layout.highest(), trials);
      take_best(trials, best);
    }
  };
  // There is one level more below zero than above: it goes to the side of the largest value.
  for (int lane = 0; lane < kLanes; ++lane)
    trials.scale[lane] = -largest / between(layout.finest, layout.coarsest, lane);
  rounds();
  if (!weighted) return best;
  const float deviation = deviation_of(group, 0, weight_of(group)) / layout.highest();
  for (int lane = 0; lane < kLanes; ++lane) {
    const float reach = deviation * between(kFewestDeviations, kMostDeviations, lane);
    trials.scale[lane] = lane % 2 == 0 ? reach : -reach;
  }
  rounds();
  const float middle = best.scale;
  for (int lane = 0; lane < kLanes; ++lane) trials.scale[lane] = middle * between(kNarrower, kWider, lane);
  rounds();
  return best;
}

// base + scale * level; the base at most `highest_base`.
Fit fit_line(const Group& group, const Layout& layout, bool weighted, float highest_base) {
  Fit best{0, 0, HUGE_VALF};
  float least = highest_base, most = -HUGE_VALF;
  for (int i = 0; i < group.count; ++i) {
    least = std::min(least, group.values[i]);
    most = std::max(most, group.values[i]);
  }
  if (most <= least) return {0, least, 0};
  const float range = most - least, weight_sum = weight_of(group);
  Trials trials{};
  const auto rounds = [&] {
    for (int round = 0; round < 3; ++round) {
      if (round > 0) refit_lines(weight_sum, highest_base, trials);
      evaluate(group, 0, layout.highest(), trials);
      take_best(trials, best);
    }
  };
  for (int lane = 0; lane < kLanes; ++lane) {
    trials.scale[lane] = range / between(layout.finest, layout.coarsest, lane);
    // Grids that begin at the smallest value find again what was on a grid before; others reach as far past both ends.
    const float past = lane % 2 == 0 ? 0.0F : (layout.highest() * trials.scale[lane] - range) / 2;
    trials.base[lane] = std::min(highest_base, least - past);
  }
  rounds();
  if (!weighted) return best;
  const float mean = mean_of(group, weight_sum);
  const float deviation = deviation_of(group, mean, weight_sum);
  for (int lane = 0; lane < kLanes; ++lane) {
    const float reach = deviation * between(kFewestDeviations, kMostDeviations, lane);
    trials.scale[lane] = 2 * reach / layout.highest();
    trials.base[lane] = std::min(highest_base, mean - reach);
  }
  rounds();
  const Fit middle = best;
  for (int lane = 0; lane < kLanes; ++lane) {
    trials.scale[lane] = middle.scale * between(kNarrower, kWider, lane);
    const float wider = (trials.scale[lane] - middle.scale) * layout.highest();
    trials.base[lane] = std::min(highest_base, middle.base - wider / 2);
  }
  rounds();
  return best;
}

// ---- Formats of 32 values --------------------------------------------------------------------------------------

bool fit_scale(const Group& group, const Layout& layout, bool weighted, BlockGrid& grid) {
  const Fit fit = fit_symmetric(group, layout, weighted);
  const uint16_t half = half_bits(fit.scale);
  grid.scale = half_to_float(half);
  if (!std::isfinite(grid.scale) || std::abs(fit.scale) >= kLeastNormalHalf) return std::isfinite(grid.scale);
  Trials trials{};
  for (int lane = 0; lane < kLanes; ++lane) trials.scale[lane] = beside(half, lane - kLanes / 2);
  evaluate(group, layout.lowest(), layout.highest(), trials);
  grid.scale = trials.scale[trials.best];
  return true;
}

bool fit_scale_and_offset(const Group& group, const Layout& layout, bool weighted, BlockGrid& grid) {
  const Fit fit = fit_line(group, layout, weighted, HUGE_VALF);
  const uint16_t half = half_bits(fit.base);
  grid.scale = as_half(fit.scale);
  grid.offset = half_to_float(half);
  if (!std::isfinite(grid.scale) || !std::isfinite(grid.offset)) return false;
  const float moved = std::abs(grid.offset - fit.base);
  if (std::abs(fit.scale) >= kLeastNormalHalf && moved <= 0.02F * std::abs(fit.scale)) return true;
  // The offset is coarse beside the scale: those beside the fit's are tried, with scales that reach as far up as the
  // fit's; and then with the scale that suits each of them best, as half precision has it.
  Trials trials{};
  for (int lane = 0; lane < kLanes; ++lane) {
    const int offset = lane % 4 - 1, reach = lane / 4;
    trials.base[lane] = beside(half, offset);
    trials.scale[lane] = fit.scale + (fit.base - trials.base[lane]) / layout.highest() * static_cast<float>(reach);
  }
  evaluate(group, 0, layout.highest(), trials);
  refit_scales(trials);
  for (float& scale : trials.scale) scale = as_scale(scale);
  evaluate(group, 0, layout.highest(), trials);
  grid.scale = trials.scale[trials.best];
  grid.offset = trials.base[trials.best];
  return true;
}

// ---- K formats -------------------------------------------------------------------------------------------------

// All groups of a block, each with the fit that it would have alone.
struct KBlock {
  const Layout& layout;
  std::array<Group, kMostGroups> groups{};
  std::array<Fit, kMostGroups> fits{};
  int count = 0;
};

struct KChoice {
  BlockGrid grid;
  double error = HUGE_VAL;
};

// Super-scales to try: what part of the largest multiple the largest scale gets.
constexpr float kMultipleParts[kLanes] = {1.0F,  1.06F, 1.03F, 0.98F, 0.96F, 0.94F, 0.92F, 0.90F,
                                          0.88F, 0.86F, 0.84F, 0.82F, 0.80F, 0.77F, 0.74F, 0.70F};
constexpr float kMultiplePartsOfPairs[4] = {1.0F, 1.04F, 0.92F, 0.84F};
// Multiples to try, beside the one that comes closest. It is the first: of equal errors the first one wins.
constexpr float kNeighbours[8] = {0, -1, 1, -2, 2, -3, 3, -4};
constexpr float kNeighboursOfPairs[4] = {0, -1, 1, 2};

float largest_scale_of(const KBlock& block) {
  float largest = 0;
  for (int g = 0; g < block.count; ++g) {
    const float scale = block.fits[static_cast<size_t>(g)].scale;
    largest = std::abs(scale) > std::abs(largest) ? scale : largest;
  }
  return largest;
}

// Super-scale for the scales that the groups would have alone.
float choose_super_scale(const KBlock& block, float largest) {
  const Layout& layout = block.layout;
  const auto lowest = static_cast<float>(layout.lowest_multiple), highest = static_cast<float>(layout.highest_multiple);
  float super[kLanes], inverse[kLanes], total[kLanes] = {};
  for (int lane = 0; lane < kLanes; ++lane) {
    super[lane] = as_scale(largest / (lowest * kMultipleParts[lane]));
    inverse[lane] = inverse_of(super[lane]);
  }
  Trials trials{};
  for (int g = 0; g < block.count; ++g) {
    const float scale = block.fits[static_cast<size_t>(g)].scale;
    for (int lane = 0; lane < kLanes; ++lane) {
      trials.scale[lane] = super[lane] * nearest_level(scale * inverse[lane], lowest, highest);
    }
    evaluate(block.groups[static_cast<size_t>(g)], layout.lowest(), layout.highest(), trials);
    for (int lane = 0; lane < kLanes; ++lane) total[lane] += trials.error[lane];
  }
  return super[smallest_of(total)];
}

// With this super-scale, the multiples that serve each group best, and the super-scale that would suit their levels.
float choose_multiples(const KBlock& block, float super, KChoice& best) {
  const Layout& layout = block.layout;
  KChoice choice;
  choice.grid.scale = super;
  choice.error = 0;
  const auto lowest = static_cast<float>(layout.lowest_multiple), highest = static_cast<float>(layout.highest_multiple);
  const float inverse = inverse_of(super);
  double products = 0, squares = 0;
  Trials trials{};
  for (int g = 0; g < block.count; ++g) {
    const float wanted = nearest_level(block.fits[static_cast<size_t>(g)].scale * inverse, lowest, highest);
    float multiple[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      // Eight around the wanted one, eight around its mirror image, where the uneven level is on the other side.
      const float step = kNeighbours[lane % 8] + (lane < 8 ? wanted : -wanted);
      multiple[lane] = std::clamp(step, lowest, highest);
      trials.scale[lane] = super * multiple[lane];
    }
    evaluate(block.groups[static_cast<size_t>(g)], layout.lowest(), layout.highest(), trials);
    const int lane = trials.best;
    choice.grid.scale_multiple[static_cast<size_t>(g)] = static_cast<int>(multiple[lane]);
    choice.error += trials.error[lane];
    products += multiple[lane] * trials.rest_level[lane];
    squares += multiple[lane] * multiple[lane] * trials.level_squared[lane];
  }
  if (choice.error < best.error) best = choice;
  return squares > 0 ? static_cast<float>(products / squares) : super;
}

bool fit_k_scales(KBlock& block, bool weighted, BlockGrid& grid) {
  for (int g = 0; g < block.count; ++g) {
    block.fits[static_cast<size_t>(g)] = fit_symmetric(block.groups[static_cast<size_t>(g)], block.layout, weighted);
  }
  const float largest = largest_scale_of(block);
  if (!std::isfinite(as_half(largest / static_cast<float>(block.layout.lowest_multiple)))) return false;
  float super = choose_super_scale(block, largest);
  KChoice best;
  for (int round = 0; round < 2; ++round) super = as_scale(choose_multiples(block, super, best));
  grid = best.grid;
  return true;
}

struct SuperScales {
  float scale = 0, minimum = 0;
};

SuperScales choose_super_scales(const KBlock& block, float largest_scale, float least_base) {
  const Layout& layout = block.layout;
  const auto highest = static_cast<float>(layout.highest_multiple);
  float scale[kLanes], minimum[kLanes], total[kLanes] = {};
  for (int lane = 0; lane < kLanes; ++lane) {
    scale[lane] = as_scale(largest_scale / (highest * kMultiplePartsOfPairs[lane % 4]));
    minimum[lane] = as_scale(-least_base / (highest * kMultiplePartsOfPairs[lane / 4]));
  }
  Trials trials{};
  for (int g = 0; g < block.count; ++g) {
    const Fit& fit = block.fits[static_cast<size_t>(g)];
    for (int lane = 0; lane < kLanes; ++lane) {
      const float scale_inverse = inverse_of(scale[lane]), minimum_inverse = inverse_of(minimum[lane]);
      trials.scale[lane] = scale[lane] * nearest_level(fit.scale * scale_inverse, 0, highest);
      trials.base[lane] = -minimum[lane] * nearest_level(-fit.base * minimum_inverse, 0, highest);
    }
    evaluate(block.groups[static_cast<size_t>(g)], 0, layout.highest(), trials);
    for (int lane = 0; lane < kLanes; ++lane) total[lane] += trials.error[lane];
  }
  const int lane = smallest_of(total);
  return {scale[lane], minimum[lane]};
}

// As choose_multiples, of scales and minima together.
SuperScales choose_multiple_pairs(const KBlock& block, SuperScales super, KChoice& best) {
  const Layout& layout = block.layout;
  KChoice choice;
  choice.grid.scale = super.scale;
  choice.grid.offset = super.minimum;
  choice.error = 0;
  const auto highest = static_cast<float>(layout.highest_multiple);
  const float scale_inverse = inverse_of(super.scale), minimum_inverse = inverse_of(super.minimum);
  // v ≈ scale · a - minimum · b, with a = multiple · level and b the other multiple: sums of products.
  double aa = 0, ab = 0, bb = 0, va = 0, vb = 0;
  Trials trials{};
  for (int g = 0; g < block.count; ++g) {
    const Fit& fit = block.fits[static_cast<size_t>(g)];
    const Group& group = block.groups[static_cast<size_t>(g)];
    const float scale = nearest_level(fit.scale * scale_inverse, 0, highest);
    const float minimum = nearest_level(-fit.base * minimum_inverse, 0, highest);
    float scale_multiple[kLanes], minimum_multiple[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      scale_multiple[lane] = std::clamp(scale + kNeighboursOfPairs[lane % 4], 0.0F, highest);
      minimum_multiple[lane] = std::clamp(minimum + kNeighboursOfPairs[lane / 4], 0.0F, highest);
      trials.scale[lane] = super.scale * scale_multiple[lane];
      trials.base[lane] = -super.minimum * minimum_multiple[lane];
    }
    evaluate(group, 0, layout.highest(), trials);
    const int lane = trials.best;
    choice.grid.scale_multiple[static_cast<size_t>(g)] = static_cast<int>(scale_multiple[lane]);
    choice.grid.offset_multiple[static_cast<size_t>(g)] = static_cast<int>(minimum_multiple[lane]);
    choice.error += trials.error[lane];
    const double m = scale_multiple[lane], b = minimum_multiple[lane], base = trials.base[lane];
    const double weight = weight_of(group);
    aa += m * m * trials.level_squared[lane];
    ab += m * b * trials.level[lane];
    bb += b * b * weight;
    va += m * (trials.rest_level[lane] + base * trials.level[lane]);
    vb += b * (trials.rest[lane] + base * weight);
  }
  if (choice.error < best.error) best = choice;
  const double determinant = aa * bb - ab * ab;
  if (determinant <= 1e-9 * aa * bb) return {aa > 0 ? static_cast<float>(va / aa) : super.scale, super.minimum};
  const double minimum = (va * ab - vb * aa) / determinant;
  if (minimum < 0) return {static_cast<float>(va / aa), super.minimum};
  return {static_cast<float>((va * bb - vb * ab) / determinant), static_cast<float>(minimum)};
}

bool fit_k_lines(KBlock& block, bool weighted, BlockGrid& grid) {
  for (int g = 0; g < block.count; ++g) {
    block.fits[static_cast<size_t>(g)] = fit_line(block.groups[static_cast<size_t>(g)], block.layout, weighted, 0);
  }
  float least_base = 0;
  for (int g = 0; g < block.count; ++g) least_base = std::min(least_base, block.fits[static_cast<size_t>(g)].base);
  const float largest_scale = largest_scale_of(block), highest = static_cast<float>(block.layout.highest_multiple);
  if (!std::isfinite(as_half(largest_scale / highest)) || !std::isfinite(as_half(least_base / highest))) return false;
  SuperScales super = choose_super_scales(block, largest_scale, least_base);
  KChoice best;
  for (int round = 0; round < 3; ++round) {
    super = choose_multiple_pairs(block, super, best);
    super = {as_scale(super.scale), as_scale(super.minimum)};
  }
  grid = best.grid;
  return true;
}

// ---- Blocks ----------------------------------------------------------------------------------------------------

// The weights with the largest as 1, so that no sum leaves fp32's range. None is 0: it would leave a group of
// unweighted values, and so its scale, undetermined. False when all are equal.
bool normalize_weights(std::span<const float> weights, float* out) {
  constexpr float kLeast = 1e-7F;
  const auto count = static_cast<size_t>(kMostValues);
  float largest = 0, least = HUGE_VALF;
  for (const float weight : weights) {
    largest = std::max(largest, weight);
    least = std::min(least, weight);
  }
  if (weights.empty() || least == largest) {
    std::fill_n(out, count, 1.0F);
    return false;
  }
  for (size_t i = 0; i < weights.size(); ++i) out[i] = std::max(kLeast, weights[i] / largest);
  return true;
}

// Whether every value is a number that a scale can reach. *nothing: all are so small that they become 0.
bool are_in_range(std::span<const float> values, bool& nothing) {
  bool in_range = true;
  float largest = 0;
  for (const float value : values) {
    in_range = in_range && std::abs(value) < kTooLarge;  // false for NaN
    largest = std::max(largest, std::abs(value));
  }
  nothing = largest <= kNothing;
  return in_range;
}

}  // namespace

bool fit_grid(const Layout& layout, std::span<const float> values, std::span<const float> weights, BlockGrid& grid) {
  bool nothing = false;
  if (!are_in_range(values, nothing)) return false;
  if (nothing) return true;
  float normalized[kMostValues];
  const bool weighted = normalize_weights(weights, normalized);
  KBlock block{layout, {}, {}, layout.groups()};
  const auto group_values = static_cast<int>(layout.grid.group_values);
  for (int g = 0; g < block.count; ++g) {
    const auto first = static_cast<ptrdiff_t>(g) * group_values;
    block.groups[static_cast<size_t>(g)] = {values.data() + first, normalized + first, group_values};
  }
  if (layout.is_k())
    return layout.has_offset ? fit_k_lines(block, weighted, grid) : fit_k_scales(block, weighted, grid);
  const Group& group = block.groups.front();
  return layout.has_offset ? fit_scale_and_offset(group, layout, weighted, grid)
                           : fit_scale(group, layout, weighted, grid);
}

}  // namespace dynslice::ggml
