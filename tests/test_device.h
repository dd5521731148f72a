// The device that tests named Cuda… compare with the CPU: DYNSLICE_TEST_DEVICE, else the first CUDA device.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>

#include "aten.h"
#include "unit/support/tensors.h"

namespace dynslice::testing {

inline at::Device test_device() {
  const char* name = std::getenv("DYNSLICE_TEST_DEVICE");
  return at::Device(name != nullptr && *name != '\0' ? name : "cuda");
}

// Tests of this fixture are skipped where the device is not there.
class OnDevice : public ::testing::Test {
 protected:
  void SetUp() override {
    if (device_.is_cuda() && !at::hasCUDA()) GTEST_SKIP() << "LibTorch sees no CUDA device";
  }

  const at::Device device_ = test_device();
};

}  // namespace dynslice::testing
