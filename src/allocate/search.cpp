#include "dynslice/allocate/search.h"

#include <algorithm>
#include <numeric>
#include <random>

namespace dynslice {
namespace {

constexpr double kShorter = 0.7;

// +1 for layers that are to lose more, -1 for as many that are to lose less, 0 for the others.
std::vector<int> draw_pairs(size_t layers, std::mt19937_64& generator) {
  std::vector<size_t> order(layers);
  std::iota(order.begin(), order.end(), size_t{0});
  for (size_t i = layers; i > 1; --i) std::swap(order[i - 1], order[generator() % i]);  // the same with every library
  std::vector<int> signs(layers, 0);
  const size_t pairs = layers < 2 ? 0 : std::max<size_t>(1, layers / 4);
  for (size_t i = 0; i < pairs; ++i) {
    signs[order[2 * i]] = 1;
    signs[order[2 * i + 1]] = -1;
  }
  return signs;
}

// What one layer of a pair cannot take or give, the other keeps too; for that pairs are matched in order.
std::vector<double> moved(const std::vector<double>& ratios, const std::vector<int>& signs, double step, double limit) {
  std::vector<double> result = ratios;
  size_t more = 0, less = 0;
  const auto next = [&](size_t from, int sign) {
    while (from < signs.size() && signs[from] != sign) ++from;
    return from;
  };
  for (more = next(0, 1), less = next(0, -1); more < signs.size() && less < signs.size();
       more = next(more + 1, 1), less = next(less + 1, -1)) {
    const double amount = std::max(0.0, std::min({step, limit - ratios[more], ratios[less]}));
    result[more] += amount;
    result[less] -= amount;
  }
  return result;
}

}  // namespace

RatioSearchResult search_ratios(
    std::vector<double> start, const RatioSearchOptions& options,
    const std::function<double(const std::vector<double>& ratios, int64_t trial)>& loss_of) {
  RatioSearchResult result{std::move(start), {}};
  const double average = std::accumulate(result.ratios.begin(), result.ratios.end(), 0.0) /
                         static_cast<double>(std::max<size_t>(1, result.ratios.size()));
  double step = options.step * average, best = loss_of(result.ratios, 0);
  result.trials.push_back({0, best, true});
  std::mt19937_64 generator(options.seed);
  const auto attempt = [&](const std::vector<int>& signs) {
    const std::vector<double> ratios = moved(result.ratios, signs, step, options.max_ratio);
    const double loss = loss_of(ratios, static_cast<int64_t>(result.trials.size()));
    const bool is_better = loss < best;
    result.trials.push_back({step, loss, is_better});
    if (!is_better) return false;
    best = loss;
    result.ratios = ratios;
    return true;
  };
  const auto may_try = [&] { return static_cast<int64_t>(result.trials.size()) < options.trials; };
  while (may_try()) {
    std::vector<int> signs = draw_pairs(result.ratios.size(), generator);
    if (attempt(signs) || !may_try()) continue;
    for (int& sign : signs) sign = -sign;
    if (!attempt(signs)) step *= kShorter;
  }
  return result;
}

}  // namespace dynslice
