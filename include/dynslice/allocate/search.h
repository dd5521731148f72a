// Better ratios by trial: budget goes from layers to others while the loss on held-out text falls.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

namespace dynslice {

struct RatioSearchOptions {
  int64_t trials = 12;     // losses that are asked for at most, that of the start included
  double step = 0.3;       // of the average ratio, that the first trial moves from layer to layer
  double max_ratio = 0.8;  // no layer loses more
  uint64_t seed = 0;
};

struct RatioTrial {
  double step = 0;  // ratio that half of the layers drawn gave to the others
  double loss = 0;  // nats a token
  bool is_better = false;
};

struct RatioSearchResult {
  std::vector<double> ratios;  // the best
  std::vector<RatioTrial> trials;
};

// Every trial draws disjoint pairs of layers, a quarter of all layers giving up less and a quarter more by one step. A
// trial that lowers the loss is the next start; after one that does not, the opposite is tried, and after both the step
// becomes smaller. The mean of the ratios stays what it is. `loss_of` is asked for the start first (trial 0).
RatioSearchResult search_ratios(std::vector<double> start, const RatioSearchOptions& options,
                                const std::function<double(const std::vector<double>& ratios, int64_t trial)>& loss_of);

}  // namespace dynslice
