// Python's random.Random, as far as lm-evaluation-harness draws few-shot examples with it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace dynslice {

// The Mersenne Twister MT19937 (Matsumoto and Nishimura 1998), seeded and read as CPython 3 does it.
class PythonRandom {
 public:
  explicit PythonRandom(uint32_t seed);

  // random.sample(range(size), count): `count` different numbers below `size`, count <= size < 2^32.
  std::vector<int64_t> sample(int64_t size, int64_t count);

 private:
  uint32_t next();
  int64_t below(int64_t limit);
  void refill();

  std::array<uint32_t, 624> state_{};
  size_t used_ = 624;
};

}  // namespace dynslice
