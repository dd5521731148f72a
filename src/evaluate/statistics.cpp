#include "dynslice/evaluate/statistics.h"

#include <algorithm>
#include <cstddef>
#include <random>
#include <vector>

namespace dynslice {
namespace {

struct Means {
  double a = 0, b = 0;
};

// Means of as many pairs as there are, drawn with replacement. Two draws come of each number of the generator: the
// product's upper half is uniform but for 1 / 2^32 of the size. (The standard's distributions differ between
// libraries.)
Means resample(std::span<const double> a, std::span<const double> b, std::mt19937_64& generator) {
  const size_t size = a.size();
  Means sums;
  for (size_t drawn = 0; drawn < size;) {
    uint64_t random = generator();
    for (int half = 0; half < 2 && drawn < size; ++half, ++drawn, random >>= 32) {
      const size_t index = static_cast<size_t>((random & 0xFFFFFFFFU) * size >> 32);
      sums.a += a[index];
      sums.b += b[index];
    }
  }
  return {sums.a / static_cast<double>(size), sums.b / static_cast<double>(size)};
}

double mean(std::span<const double> values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return sum / static_cast<double>(values.size());
}

}  // namespace

double quantile_of_sorted(std::span<const double> values, double q) {
  const double place = q * static_cast<double>(values.size() - 1);
  const auto below = static_cast<size_t>(place);
  const size_t above = std::min(below + 1, values.size() - 1);
  return values[below] + (place - static_cast<double>(below)) * (values[above] - values[below]);
}

Interval paired_bootstrap(std::span<const double> a, std::span<const double> b,
                          const std::function<double(double mean_a, double mean_b)>& statistic,
                          const BootstrapOptions& options) {
  std::mt19937_64 generator(options.seed);
  std::vector<double> values(static_cast<size_t>(options.resamples));
  for (double& value : values) {
    const Means means = resample(a, b, generator);
    value = statistic(means.a, means.b);
  }
  std::sort(values.begin(), values.end());
  const double tail = (1 - options.level) / 2;
  return {statistic(mean(a), mean(b)), quantile_of_sorted(values, tail), quantile_of_sorted(values, 1 - tail)};
}

}  // namespace dynslice
