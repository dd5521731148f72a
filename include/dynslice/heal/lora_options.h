// What low-rank updates look like; apart, for those who only need to say so.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace dynslice {

struct LoraOptions {
  int64_t rank = 8;
  double alpha = 16;                      // updates are scaled by alpha / rank
  double dropout = 0;                     // see LayerUpdates
  std::vector<std::string> modules = {};  // last words of their names: "q_proj"; none: all linears
  uint64_t seed = 0;                      // of a's first values
};

}  // namespace dynslice
