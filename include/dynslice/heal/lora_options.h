// What low-rank updates look like; apart, for those who only need to say so.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace dynslice {

struct LoraOptions {
  int64_t rank = 8;
  double alpha = 16;   // updates are scaled by alpha / rank
  double dropout = 0;  // see LayerUpdates
  std::vector<std::string> modules = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"};
  uint64_t seed = 0;  // of a's first values
};

}  // namespace dynslice
