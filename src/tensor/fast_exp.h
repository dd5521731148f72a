// Arithmetic that the compiler vectorizes inside the loops that call it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "dynslice/tensor/multiversion.h"

namespace dynslice::kernels {

DYNSLICE_IN_LOOPS float load(float value) { return value; }
// bf16 is the upper half of an fp32.
DYNSLICE_IN_LOOPS float load(uint16_t bits) { return __builtin_bit_cast(float, static_cast<uint32_t>(bits) << 16); }

// exp(x) for x in [-87, 88] with relative error below 2e-7: 2^n * p(r), after range reduction to |r| <= ln2 / 2
// (the coefficients are Cephes' expf). Written out so that the loops that call it are vectorized.
DYNSLICE_IN_LOOPS float fast_exp(float x) {
  x = std::min(std::max(x, -87.0F), 88.0F);
  const float n = std::nearbyint(x * 1.44269504088896341F);
  float r = x - n * 0.693359375F;
  r -= n * -2.12194440e-4F;
  float p = 1.9875691500e-4F;
  p = p * r + 1.3981999507e-3F;
  p = p * r + 8.3334519073e-3F;
  p = p * r + 4.1665795894e-2F;
  p = p * r + 1.6666665459e-1F;
  p = p * r + 5.0000001201e-1F;
  const float value = p * r * r + r + 1.0F;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  return value * __builtin_bit_cast(float, bits);
}

// cap tanh(x / cap), with an absolute error below 2e-7 cap.
DYNSLICE_IN_LOOPS float capped(float x, float cap) { return cap - 2.0F * cap / (fast_exp(2.0F * x / cap) + 1.0F); }

}  // namespace dynslice::kernels
