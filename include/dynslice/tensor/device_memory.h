// How much memory a CUDA device has, as far as LibTorch (2.11 or newer) says.
#pragma once

#include <c10/core/Device.h>

#include <cstdint>
#include <optional>

namespace dynslice {

// What a CUDA device has left for this process, less a share that the allocator loses between its blocks. Nothing for
// the CPU, and where LibTorch does not say.
[[nodiscard]] std::optional<uint64_t> free_device_bytes(c10::Device device);

// The most that tensors of this process had of a CUDA device's memory at a time; nothing as above.
[[nodiscard]] std::optional<uint64_t> peak_device_bytes(c10::Device device);

}  // namespace dynslice
