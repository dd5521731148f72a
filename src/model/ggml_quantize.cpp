#include "model/ggml_quantize.h"

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

#include "model/ggml_dequantize.h"
#include "support/multiversion.h"

// How a grid is found. Nothing is solved in closed form: the squared error is a rugged function of the scale, since
// every code jumps somewhere. Instead sixteen grids are tried side by side, one in each lane of a vector; each gives
// its true error and the scale and offset that would suit its codes best (least squares), which are tried in the next
// round. In the K formats the groups are fitted first, each on its own. Then come the super-scales, which all groups
// share, and with these every group tries its integer sub-scales again, this time as the decoder will see them.

namespace dynslice {
namespace {

constexpr int kLanes = 16;
constexpr int kMostValues = 256, kMostGroups = 16;
// Twice what the widest format reaches (65504 · 128 · 32); the squares of such values are still far from overflow.
constexpr float kTooLarge = 0x1p29F;
// Below half of the smallest step, 2^-24, all codes are that of zero.
constexpr float kNothing = 0x1p-25F;

// Adding it to a number of at most 22 bits rounds that to the nearest integer, which is then found in its low bits.
constexpr float kRounder = 0x1.8p23F;

// The nearest of the integers `lowest` to `highest`; of anything, infinities included. Comparing bit patterns serves,
// because positive floats are ordered like their bits and negative ones have negative patterns.
inline float nearest_level(float x, float lowest, float highest) {
  int32_t bits = std::bit_cast<int32_t>(x + kRounder);
  bits = std::max(bits, std::bit_cast<int32_t>(lowest + kRounder));
  bits = std::min(bits, std::bit_cast<int32_t>(highest + kRounder));
  return std::bit_cast<float>(bits) - kRounder;
}

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

// ---- Formats ---------------------------------------------------------------------------------------------------

// What tells the formats apart when a grid is fitted. A level is a code counted from the one that means zero.
struct Layout {
  GgmlGrid grid;
  int zero;                               // the code of zero in formats without offsets; 0 in those with
  bool has_offset;                        // values are scale * code + offset, else scale * (code - zero)
  int lowest_multiple, highest_multiple;  // what a K format multiplies its super-scales by; 0, 0 in the others
  float finest, coarsest;                 // steps tried: the largest value (or the range) holds so many of them

  bool is_k() const { return highest_multiple > 0; }
  float lowest() const { return static_cast<float>(-zero); }
  float highest() const { return static_cast<float>(grid.codes - 1 - zero); }
  int groups() const { return static_cast<int>(grid.block_values / grid.group_values); }
};

const Layout& layout_of(GgmlType type) {
  static constexpr Layout kQ4_0{{32, 32, 16}, 8, false, 0, 0, 9.0F, 6.0F};
  static constexpr Layout kQ4_1{{32, 32, 16}, 0, true, 0, 0, 16.0F, 11.0F};
  static constexpr Layout kQ5_0{{32, 32, 32}, 16, false, 0, 0, 17.0F, 12.0F};
  static constexpr Layout kQ5_1{{32, 32, 32}, 0, true, 0, 0, 32.0F, 24.0F};
  // The code of -128 is not used: ggml never writes it.
  static constexpr Layout kQ8_0{{32, 32, 255}, 127, false, 0, 0, 127.4F, 112.0F};
  static constexpr Layout kQ2_K{{256, 16, 4}, 0, true, 0, 15, 3.8F, 1.6F};
  static constexpr Layout kQ3_K{{256, 16, 8}, 4, false, -32, 31, 4.7F, 2.4F};
  static constexpr Layout kQ4_K{{256, 32, 16}, 0, true, 0, 63, 16.0F, 11.0F};
  static constexpr Layout kQ5_K{{256, 32, 32}, 0, true, 0, 63, 32.0F, 24.0F};
  static constexpr Layout kQ6_K{{256, 16, 64}, 32, false, -128, 127, 33.0F, 25.0F};
  switch (type) {
    case GgmlType::kQ4_0:
      return kQ4_0;
    case GgmlType::kQ4_1:
      return kQ4_1;
    case GgmlType::kQ5_0:
      return kQ5_0;
    case GgmlType::kQ5_1:
      return kQ5_1;
    case GgmlType::kQ8_0:
      return kQ8_0;
    case GgmlType::kQ2_K:
      return kQ2_K;
    case GgmlType::kQ3_K:
      return kQ3_K;
    case GgmlType::kQ4_K:
      return kQ4_K;
    case GgmlType::kQ5_K:
      return kQ5_K;
    case GgmlType::kQ6_K:
      return kQ6_K;
    case GgmlType::kF32:
    case GgmlType::kF16:
    case GgmlType::kBF16:
      break;
  }
  throw std::logic_error(std::string(ggml_format(type).name) + " has no codes");
}

// The grid of a block before it is written: what the decoder multiplies.
struct BlockGrid {
  float scale = 0, offset = 0;  // Of the block. K formats with offsets subtract theirs: it is the super-minimum.
  std::array<int, kMostGroups> scale_multiple{}, offset_multiple{};
};

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
    trials.base[lane] = beside(half, lane % 4 - 1);
    trials.scale[lane] = fit.scale + (fit.base - trials.base[lane]) / layout.highest() * static_cast<float>(lane / 4);
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

bool fit_grid(const Layout& layout, std::span<const float> values, std::span<const float> weights, BlockGrid& grid) {
  bool nothing = false;
  if (!are_in_range(values, nothing)) return false;
  if (nothing) return true;
  float normalized[kMostValues];
  const bool weighted = normalize_weights(weights, normalized);
  KBlock block{layout, {}, {}, layout.groups()};
  const auto group_values = static_cast<int>(layout.grid.group_values);
  for (int g = 0; g < block.count; ++g) {
    const auto first = static_cast<ptrdiff_t>(g * group_values);
    block.groups[static_cast<size_t>(g)] = {values.data() + first, normalized + first, group_values};
  }
  if (layout.is_k())
    return layout.has_offset ? fit_k_lines(block, weighted, grid) : fit_k_scales(block, weighted, grid);
  const Group& group = block.groups.front();
  return layout.has_offset ? fit_scale_and_offset(group, layout, weighted, grid)
                           : fit_scale(group, layout, weighted, grid);
}

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

// ---- Bytes: the layouts are described in ggml_dequantize.cpp --------------------------------------------------------

void put_half(float value, uint8_t* out) {
  const uint16_t half = half_bits(value);
  out[0] = static_cast<uint8_t>(half & 0xFF);
  out[1] = static_cast<uint8_t>(half >> 8);
}

void put_q2_scales(const BlockGrid& grid, uint8_t* out) {
  for (size_t g = 0; g < 16; ++g)
    out[g] = static_cast<uint8_t>(grid.scale_multiple[g] | (grid.offset_multiple[g] << 4));
}

void put_q3_scales(const BlockGrid& grid, uint8_t* out) {
  std::fill_n(out, 12, uint8_t{0});
  for (size_t g = 0; g < 16; ++g) {
    const int scale = grid.scale_multiple[g] + 32;
    out[g % 8] = static_cast<uint8_t>(out[g % 8] | ((scale & 0xF) << (g / 8 * 4)));
    out[8 + g % 4] = static_cast<uint8_t>(out[8 + g % 4] | ((scale >> 4) << (g / 4 * 2)));
  }
}

void put_k_scales(const BlockGrid& grid, uint8_t* out) {
  for (size_t g = 0; g < 4; ++g) {
    const int scale = grid.scale_multiple[g], minimum = grid.offset_multiple[g];
    const int later_scale = grid.scale_multiple[g + 4], later_minimum = grid.offset_multiple[g + 4];
    out[g] = static_cast<uint8_t>(scale | ((later_scale >> 4) << 6));
    out[g + 4] = static_cast<uint8_t>(minimum | ((later_minimum >> 4) << 6));
    out[g + 8] = static_cast<uint8_t>((later_scale & 0xF) | ((later_minimum & 0xF) << 4));
  }
}

void put_scales(GgmlType type, const BlockGrid& grid, uint8_t* block) {
  switch (type) {
    case GgmlType::kQ4_1:
    case GgmlType::kQ5_1:
      put_half(grid.offset, block + 2);
      [[fallthrough]];
    case GgmlType::kQ4_0:
    case GgmlType::kQ5_0:
    case GgmlType::kQ8_0:
      put_half(grid.scale, block);
      return;
    case GgmlType::kQ2_K:
      put_q2_scales(grid, block);
      put_half(grid.scale, block + 80);
      put_half(grid.offset, block + 82);
      return;
    case GgmlType::kQ3_K:
      put_q3_scales(grid, block + 96);
      put_half(grid.scale, block + 108);
      return;
    case GgmlType::kQ4_K:
    case GgmlType::kQ5_K:
      put_half(grid.scale, block);
      put_half(grid.offset, block + 2);
      put_k_scales(grid, block + 4);
      return;
    case GgmlType::kQ6_K:
      for (size_t g = 0; g < 16; ++g) block[192 + g] = static_cast<uint8_t>(grid.scale_multiple[g]);
      put_half(grid.scale, block + 208);
      return;
    case GgmlType::kF32:
    case GgmlType::kF16:
    case GgmlType::kBF16:
      break;
  }
  throw std::logic_error("put_scales: no quantized type");
}

// 32 codes: low nibbles of the bytes are those of the first 16.
void put_nibbles(const uint8_t* codes, uint8_t* out) {
  for (size_t i = 0; i < 16; ++i) out[i] = static_cast<uint8_t>((codes[i] & 0xF) | ((codes[i + 16] & 0xF) << 4));
}

// The fifth bits of 32 codes, one word.
void put_fifth_bits(const uint8_t* codes, uint8_t* out) {
  for (size_t byte = 0; byte < 4; ++byte) {
    int bits = 0;
    for (size_t i = 0; i < 8; ++i) bits |= ((codes[byte * 8 + i] >> 4) & 1) << i;
    out[byte] = static_cast<uint8_t>(bits);
  }
}

// The lowest two bits of 256 codes, of Q2_K and Q3_K.
void put_pairs(const uint8_t* codes, uint8_t* out) {
  for (size_t half = 0; half < 2; ++half) {
    const uint8_t* c = codes + half * 128;
    for (size_t i = 0; i < 32; ++i) {
      out[half * 32 + i] =
          static_cast<uint8_t>((c[i] & 3) | ((c[i + 32] & 3) << 2) | ((c[i + 64] & 3) << 4) | ((c[i + 96] & 3) << 6));
    }
  }
}

// One bit of every code: byte i has that of the codes i, 32 + i, 64 + i ...
void put_plane(const uint8_t* codes, int bit, uint8_t* out) {
  for (size_t i = 0; i < 32; ++i) {
    int bits = 0;
    for (size_t run = 0; run < 8; ++run) bits |= ((codes[run * 32 + i] >> bit) & 1) << run;
    out[i] = static_cast<uint8_t>(bits);
  }
}

// Low nibbles of Q4_K and Q5_K.
void put_k_nibbles(const uint8_t* codes, uint8_t* out) {
  for (size_t pair = 0; pair < 4; ++pair) {
    const uint8_t* c = codes + pair * 64;
    for (size_t i = 0; i < 32; ++i) out[pair * 32 + i] = static_cast<uint8_t>((c[i] & 0xF) | ((c[i + 32] & 0xF) << 4));
  }
}

void put_q6_codes(const uint8_t* codes, uint8_t* low, uint8_t* high) {
  for (size_t half = 0; half < 2; ++half) {
    const uint8_t* c = codes + half * 128;
    for (size_t i = 0; i < 32; ++i) {
      low[half * 64 + i] = static_cast<uint8_t>((c[i] & 0xF) | ((c[i + 64] & 0xF) << 4));
      low[half * 64 + 32 + i] = static_cast<uint8_t>((c[i + 32] & 0xF) | ((c[i + 96] & 0xF) << 4));
      high[half * 32 + i] = static_cast<uint8_t>((c[i] >> 4) | ((c[i + 32] >> 4) << 2) | ((c[i + 64] >> 4) << 4) |
                                                 ((c[i + 96] >> 4) << 6));
    }
  }
}

void put_codes(GgmlType type, const uint8_t* codes, uint8_t* block) {
  switch (type) {
    case GgmlType::kQ4_0:
      return put_nibbles(codes, block + 2);
    case GgmlType::kQ4_1:
      return put_nibbles(codes, block + 4);
    case GgmlType::kQ5_0:
      put_fifth_bits(codes, block + 2);
      return put_nibbles(codes, block + 6);
    case GgmlType::kQ5_1:
      put_fifth_bits(codes, block + 4);
      return put_nibbles(codes, block + 8);
    case GgmlType::kQ8_0:
      for (size_t i = 0; i < 32; ++i) block[2 + i] = static_cast<uint8_t>(codes[i] - 127);
      return;
    case GgmlType::kQ2_K:
      return put_pairs(codes, block + 16);
    case GgmlType::kQ3_K:
      put_plane(codes, 2, block);
      return put_pairs(codes, block + 32);
    case GgmlType::kQ4_K:
      return put_k_nibbles(codes, block + 16);
    case GgmlType::kQ5_K:
      put_plane(codes, 4, block + 16);
      return put_k_nibbles(codes, block + 48);
    case GgmlType::kQ6_K:
      return put_q6_codes(codes, block, block + 128);
    case GgmlType::kF32:
    case GgmlType::kF16:
    case GgmlType::kBF16:
      break;
  }
  throw std::logic_error("put_codes: no quantized type");
}

uint8_t* bytes_of(std::span<std::byte> block) { return reinterpret_cast<uint8_t*>(block.data()); }

// ---- Rows ------------------------------------------------------------------------------------------------------

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
  if (values.size() != block_values || (!weights.empty() && weights.size() != block_values) ||
      block.size() != static_cast<size_t>(ggml_format(type).bytes) || scales.size() != groups ||
      offsets.size() != groups) {
    throw std::logic_error("fit_block: the sizes are not those of one block");
  }
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
  if (codes.size() != static_cast<size_t>(layout.grid.block_values) ||
      block.size() != static_cast<size_t>(ggml_format(type).bytes)) {
    throw std::logic_error("store_codes: the sizes are not those of one block");
  }
  put_codes(type, codes.data(), bytes_of(block));
}

bool quantize(GgmlType type, std::span<const float> values, std::span<std::byte> blocks) {
  const GgmlFormat& format = ggml_format(type);
  const auto per_block = static_cast<size_t>(format.values), block_bytes = static_cast<size_t>(format.bytes);
  if (values.size() % per_block != 0 || blocks.size() != values.size() / per_block * block_bytes) {
    throw std::logic_error("quantize: values and blocks do not fit each other");
  }
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
