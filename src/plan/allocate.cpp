#include "dynslice/plan/allocate.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "dynslice/support/error.h"

namespace dynslice {
namespace {

double sum(const std::vector<double>& values) { return std::accumulate(values.begin(), values.end(), 0.0); }

}  // namespace

void check_options(const AllocateOptions& options) {
  if (!(options.average >= 0 && options.average < 1)) {
    throw_error(ErrorKind::kUsage, "--avg ", options.average, ": the average ratio must be in [0, 1), or 0% to 100%");
  }
  if (options.average > kLargestRatio) {
    throw_error(ErrorKind::kUsage, "--avg ", options.average, ": no layer can lose more than ", kLargestRatio);
  }
  if (!(options.max_ratio > 0)) {
    throw_error(ErrorKind::kUsage, "--max-ratio ", options.max_ratio, ": must be above 0");
  }
  if (options.average > options.max_ratio) {
    throw_error(ErrorKind::kUsage, "--avg ", options.average, ": is above the largest ratio of a layer, --max-ratio ",
                options.max_ratio);
  }
  if (!(options.base >= 0 && options.base <= options.average)) {
    throw_error(ErrorKind::kUsage, "--base ", options.base, ": must be in [0, ", options.average,
                "], the average ratio");
  }
}

std::vector<double> allocate_constant(size_t layers, const AllocateOptions& options) {
  check_options(options);
  return std::vector<double>(layers, options.average);
}

std::vector<double> allocate_by_redundancy(const std::vector<double>& layer_redundancy,
                                           const AllocateOptions& options) {
  check_options(options);
  const auto [low, high] = std::minmax_element(layer_redundancy.begin(), layer_redundancy.end());
  if (layer_redundancy.empty() || *low == *high) return allocate_constant(layer_redundancy.size(), options);
  std::vector<double> ratios;
  for (const double value : layer_redundancy) ratios.push_back((value - *low) / (*high - *low));
  const double mean = sum(ratios) / static_cast<double>(ratios.size());
  for (double& ratio : ratios) ratio = ratio * (options.average - options.base) / mean + options.base;
  return cap_ratios(std::move(ratios), options.max_ratio);
}

std::vector<double> allocate_by_influence(const std::vector<double>& layer_redundancy, double epsilon,
                                          const AllocateOptions& options) {
  check_options(options);
  const double most = *std::max_element(layer_redundancy.begin(), layer_redundancy.end());
  std::vector<double> ratios;
  for (const double redundancy : layer_redundancy) ratios.push_back(std::exp((redundancy - most) / epsilon));
  const double scale = static_cast<double>(ratios.size()) * options.average / sum(ratios);
  for (double& ratio : ratios) ratio *= scale;
  return cap_ratios(std::move(ratios), options.max_ratio);
}

std::vector<double> cap_ratios(std::vector<double> ratios, double limit) {
  const double total = sum(ratios);
  std::vector<bool> capped(ratios.size(), false);
  for (bool changed = true; changed;) {
    changed = false;
    for (size_t i = 0; i < ratios.size(); ++i) {
      if (!capped[i] && ratios[i] > limit) {
        capped[i] = changed = true;
        ratios[i] = limit;
      }
    }
    if (!changed) break;
    const auto free = std::count(capped.begin(), capped.end(), false);
    double free_sum = 0;
    for (size_t i = 0; i < ratios.size(); ++i) free_sum += capped[i] ? 0 : ratios[i];
    const double free_total = total - limit * static_cast<double>(static_cast<int64_t>(ratios.size()) - free);
    for (size_t i = 0; i < ratios.size(); ++i) {
      if (!capped[i])
        ratios[i] = free_sum > 0 ? ratios[i] * free_total / free_sum : free_total / static_cast<double>(free);
    }
  }
  return ratios;
}

std::vector<double> base_candidates(double average) {
  std::vector<double> bases;
  for (int step = 0; average - 0.02 * step > 1e-9; ++step) bases.push_back(average - 0.02 * step);
  bases.push_back(0);
  return bases;
}

}  // namespace dynslice
