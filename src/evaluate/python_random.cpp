#include "evaluate/python_random.h"

#include <bit>
#include <numeric>
#include <set>

namespace dynslice {
namespace {

constexpr uint32_t kPeriodOffset = 397;

}  // namespace

// init_by_array with the one word that a small seed is.
PythonRandom::PythonRandom(uint32_t seed) {
  const size_t size = state_.size();
  state_[0] = 19650218U;
  const auto mixed = [&](size_t i) { return state_[i - 1] ^ (state_[i - 1] >> 30); };
  for (size_t i = 1; i < size; ++i) state_[i] = 1812433253U * mixed(i) + static_cast<uint32_t>(i);
  size_t i = 1;
  const auto step = [&] {
    if (++i < size) return;
    state_[0] = state_[size - 1];
    i = 1;
  };
  for (size_t round = 0; round < size; ++round, step()) state_[i] = (state_[i] ^ (mixed(i) * 1664525U)) + seed;
  for (size_t round = 1; round < size; ++round, step()) {
    state_[i] = (state_[i] ^ (mixed(i) * 1566083941U)) - static_cast<uint32_t>(i);
  }
  state_[0] = 0x80000000U;
}

void PythonRandom::refill() {
  const size_t size = state_.size();
  for (size_t i = 0; i < size; ++i) {
    const uint32_t joined = (state_[i] & 0x80000000U) | (state_[(i + 1) % size] & 0x7FFFFFFFU);
    state_[i] = state_[(i + kPeriodOffset) % size] ^ (joined >> 1) ^ ((joined & 1U) != 0 ? 0x9908B0DFU : 0U);
  }
  used_ = 0;
}

uint32_t PythonRandom::next() {
  if (used_ == state_.size()) refill();
  uint32_t y = state_[used_++];
  y ^= y >> 11;
  y ^= (y << 7) & 0x9D2C5680U;
  y ^= (y << 15) & 0xEFC60000U;
  return y ^ (y >> 18);
}

int64_t PythonRandom::below(int64_t limit) {
  const auto bits = static_cast<int>(std::bit_width(static_cast<uint64_t>(limit)));
  int64_t drawn = 0;
  do {
    drawn = static_cast<int64_t>(next() >> (32 - bits));
  } while (drawn >= limit);
  return drawn;
}

std::vector<int64_t> PythonRandom::sample(int64_t size, int64_t count) {
  std::vector<int64_t> drawn;
  // Python keeps a pool while that is smaller than a set of what was drawn.
  int64_t set_size = 21;
  if (count > 5) {
    int64_t table = 1;
    while (table < 3 * count) table *= 4;
    set_size += table;
  }
  if (size <= set_size) {
    std::vector<int64_t> pool(static_cast<size_t>(size));
    std::iota(pool.begin(), pool.end(), int64_t{0});
    for (int64_t left = size; left > size - count; --left) {
      const auto place = static_cast<size_t>(below(left));
      drawn.push_back(pool[place]);
      pool[place] = pool[static_cast<size_t>(left - 1)];
    }
    return drawn;
  }
  std::set<int64_t> taken;
  while (static_cast<int64_t>(drawn.size()) < count) {
    const int64_t place = below(size);
    if (taken.insert(place).second) drawn.push_back(place);
  }
  return drawn;
}

}  // namespace dynslice
