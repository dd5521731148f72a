#include "dynslice/tensor/device_memory.h"

#include <ATen/Context.h>
#include <torch/version.h>

#define DYNSLICE_HAS_MEMORY_INFO (TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 11)
#if DYNSLICE_HAS_MEMORY_INFO
#include <c10/core/CachingDeviceAllocator.h>
#endif

namespace dynslice {

#if DYNSLICE_HAS_MEMORY_INFO

namespace {

// A device without an index is the current one, the first unless somebody said otherwise.
c10::DeviceIndex index_of(c10::Device device) { return device.has_index() ? device.index() : c10::DeviceIndex{0}; }

}  // namespace

std::optional<uint64_t> free_device_bytes(c10::Device device) {
  if (!device.is_cuda()) return std::nullopt;
  at::globalContext().lazyInitDevice(device.type());
  const uint64_t bytes = c10::getDeviceAllocator(device.type())->getMemoryInfo(index_of(device)).first;
  return bytes - bytes / 20;
}

std::optional<uint64_t> peak_device_bytes(c10::Device device) {
  if (!device.is_cuda()) return std::nullopt;
  at::globalContext().lazyInitDevice(device.type());
  const auto stats = c10::getDeviceAllocator(device.type())->getDeviceStats(index_of(device));
  return static_cast<uint64_t>(stats.allocated_bytes.front().peak);  // of small and large blocks together
}

#else

std::optional<uint64_t> free_device_bytes(c10::Device) { return std::nullopt; }
std::optional<uint64_t> peak_device_bytes(c10::Device) { return std::nullopt; }

#endif

}  // namespace dynslice
