#include "dynslice/tensor/random.h"

#include <ATen/Context.h>

#include <mutex>

namespace dynslice {

at::Generator seeded_generator(at::Device device, uint64_t seed) {
  at::Generator shared = at::globalContext().defaultGenerator(device);
  at::Generator own = [&] {
    const std::lock_guard<std::mutex> lock(shared.mutex());
    return shared.clone();
  }();
  own.set_current_seed(seed);
  return own;
}

}  // namespace dynslice
