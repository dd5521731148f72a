// Where the layers of a smaller model stand in the one that it was made from.
#pragma once

#include <cstdint>
#include <vector>

#include "dynslice/model/checkpoint.h"

namespace dynslice {

// For every layer of the model, how many layers of the original the stream that leaves it stands behind. Throws kUsage
// when the model's records do not lead to as many layers as the original has, kBadInput when they are damaged.
std::vector<int64_t> boundaries_in_original(const Checkpoint& checkpoint, const Checkpoint& original);

}  // namespace dynslice
