#include "dynslice/resources/estimate.h"

#include <algorithm>

namespace dynslice {
namespace {

// Multiplications and additions of an eigendecomposition for each of its n³: the reduction to a tridiagonal matrix
// (4/3) and the way of the eigenvectors back (2). What the tridiagonal problem takes is not counted: it depends on the
// values.
constexpr double kEigenFlops = 10.0 / 3;

}  // namespace

Work& Work::operator+=(const Work& other) {
  forward_flops += other.forward_flops;
  rotation_flops += other.rotation_flops;
  moment_flops += other.moment_flops;
  eigen_cubes += other.eigen_cubes;
  bytes_read += other.bytes_read;
  bytes_streamed += other.bytes_streamed;
  return *this;
}

uint64_t ResourceEstimate::fixed_bytes() const { return total(parts); }

ResourceEstimate operator+(const ResourceEstimate& first, const ResourceEstimate& second) {
  const auto all = [](const ResourceEstimate& e) { return e.fixed_bytes() + e.stream_bytes; };
  ResourceEstimate sum = all(first) >= all(second) ? first : second;
  sum.work = first.work;
  sum.work += second.work;
  sum.output_bytes = first.output_bytes + second.output_bytes;
  return sum;
}

uint64_t total(const std::vector<MemoryPart>& parts) {
  uint64_t sum = 0;
  for (const MemoryPart& part : parts) sum += part.bytes;
  return sum;
}

std::vector<MemoryPart> larger(std::vector<MemoryPart> first, std::vector<MemoryPart> second) {
  return total(first) >= total(second) ? std::move(first) : std::move(second);
}

std::vector<MemoryPart> kept_together(std::vector<MemoryPart> first, const std::vector<MemoryPart>& second) {
  for (const MemoryPart& part : second) {
    if (part.name != "program") first.push_back(part);
  }
  return first;
}

double Work::flops() const { return forward_flops + rotation_flops + moment_flops + kEigenFlops * eigen_cubes; }

double ideal_seconds(const Work& work, const GemmRates& peak) {
  return work.forward_flops / peak.forward + (work.rotation_flops + work.moment_flops) / peak.fp32 +
         kEigenFlops * work.eigen_cubes / peak.fp64;
}

double estimate_seconds(const Work& work, const MachineRates& rates) {
  const auto time = [](double amount, double rate) { return amount > 0 ? amount / std::max(rate, 1.0) : 0; };
  return time(work.forward_flops, rates.forward_flops) + time(work.rotation_flops, rates.rotation_flops) +
         time(work.moment_flops, rates.moment_flops) + time(work.eigen_cubes, rates.eigen_cubes) +
         time(work.bytes_read, rates.bytes_read) + time(work.bytes_streamed, rates.bytes_streamed);
}

}  // namespace dynslice
