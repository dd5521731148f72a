// Figures of samples: how sure a mean, or the difference of two, is.
#pragma once

#include <cstdint>
#include <functional>
#include <span>

namespace dynslice {

struct Estimate {
  double value = 0;
  double standard_error = 0;
};

// The value below which a share `q` of the values, which are in order, lie; between neighbours by linear interpolation.
// `values` is not empty.
[[nodiscard]] double quantile_of_sorted(std::span<const double> values, double q);

struct BootstrapOptions {
  int64_t resamples = 10'000;
  uint64_t seed = 0;
  double level = 0.95;  // of the interval
};

struct Interval {
  double value = 0;  // of the sample itself
  double low = 0, high = 0;
};

// What a statistic of two means may be: the interval between quantiles of what it is in samples drawn, with
// replacement, from the pairs (a[i], b[i]) (Efron's percentile method). Pairs are of the same question or the same
// window of text, so that what makes a question hard for both models is not in the interval. The same seed gives the
// same interval everywhere. `a` and `b` are of one size and not empty.
[[nodiscard]] Interval paired_bootstrap(std::span<const double> a, std::span<const double> b,
                                        const std::function<double(double mean_a, double mean_b)>& statistic,
                                        const BootstrapOptions& options = {});

}  // namespace dynslice
