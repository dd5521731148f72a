// How much of a tensor is converted at a time.
#pragma once

#include <cstdint>

namespace dynslice {

// Values in memory at a time: enough for all threads, small beside a layer.
inline constexpr int64_t kChunkValues = int64_t{1} << 22;
// Values that are worth another thread.
inline constexpr int64_t kGrainValues = int64_t{1} << 15;

}  // namespace dynslice
