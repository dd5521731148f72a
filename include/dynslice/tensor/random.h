// Random numbers that no other code of the process sees or disturbs.
#pragma once

#include <ATen/core/Generator.h>
#include <c10/core/Device.h>

#include <cstdint>

namespace dynslice {

// A generator of its own for tensors on the device: it gives what the device's default generator would give after
// at::manual_seed(seed), and leaves that one as it is.
[[nodiscard]] at::Generator seeded_generator(at::Device device, uint64_t seed);

}  // namespace dynslice
