// Better ratios by trial: budget goes from layers to others while the loss on held-out text falls.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

namespace dynslice {

struct RatioSearchOptions {
  int64_t trials = 13;     // losses that are asked for at most, that of the start included
  double step = 0.3;       // of the average ratio, that the first trials move layers by (root mean square)
  double max_ratio = 0.8;  // no layer loses more
};

struct RatioTrial {
  int64_t mode = 0;  // 0 (and the start): away from the average by more or less; k: half waves over the depth
  double step = 0;   // root mean square of what the layers' ratios were to be moved by; below 0: the opposite way
  double loss = 0;   // nats a token
  bool is_better = false;
};

struct RatioSearchResult {
  std::vector<double> ratios;  // the best
  std::vector<RatioTrial> trials;
};

// What layers do to each other is seen where many of them move together, and little of it in one of them: the ratios
// are moved along smooth modes. Mode 0 follows the start's own deviations from its average further or less far; mode k
// = 1, 2, 3 is cos(k π (i + 1/2) / L) for layer i of L: more in front and less behind, more at both ends, and so on.
// Along every mode in turn a step is tried both ways, then the vertex of the parabola through the three losses; the
// best is the next start. After all modes the step becomes half. The mean of the ratios stays what it is.
// `loss_of` is asked for the start first (trial 0).
[[nodiscard]] RatioSearchResult search_ratios(
    std::vector<double> start, const RatioSearchOptions& options,
    const std::function<double(const std::vector<double>& ratios, int64_t trial)>& loss_of);

}  // namespace dynslice
