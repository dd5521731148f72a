// Estimates of memory, disk and time, as numbers that are added up: what a verb will need, before it begins. What goes
// into them is known beside each method (its estimate.h); this room knows no method, model or device.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace dynslice {

// Arithmetic, by the kind of product that does it: their rates differ.
struct Work {
  double forward_flops = 0;            // in the dtype of the forward
  double rotation_flops = 0;           // fp32
  double moment_flops = 0;             // fp32, summed in fp64
  double eigen_cubes = 0;              // sum of n³ over all eigendecompositions of n × n matrices
  double bytes_read = 0;               // weights, as stored; of a conversion, those written too
  double bytes_streamed = 0;           // weights in memory, all of them for every token that is decoded
  [[nodiscard]] double flops() const;  // all multiplications and additions
  Work& operator+=(const Work& other);
};

struct MemoryPart {
  std::string name;  // "layer_weights": a key of the --json output
  uint64_t bytes = 0;
};

struct ResourceEstimate {
  std::vector<MemoryPart> parts;  // in memory together at the worst moment, streams excepted
  uint64_t stream_bytes = 0;      // residual streams: in memory, or in the scratch file
  uint64_t output_bytes = 0;      // on the disk, for good
  Work work;
  [[nodiscard]] uint64_t fixed_bytes() const;  // sum of the parts
};

// One estimate after the other: the larger memory, the sum of the work and of the output.
ResourceEstimate operator+(const ResourceEstimate& first, const ResourceEstimate& second);

// Windows of text that go through the model together.
struct TextAmount {
  int64_t windows = 0;
  int64_t length = 0;
  [[nodiscard]] int64_t tokens() const { return windows * length; }
};

// ---- Parts ----

[[nodiscard]] uint64_t total(const std::vector<MemoryPart>& parts);

[[nodiscard]] std::vector<MemoryPart> larger(std::vector<MemoryPart> first, std::vector<MemoryPart> second);

// One after the other, where what the first gave back stays with the process: the program once, all else together.
[[nodiscard]] std::vector<MemoryPart> kept_together(std::vector<MemoryPart> first,
                                                    const std::vector<MemoryPart>& second);

// ---- Time ----

struct MachineRates {
  double forward_flops = 0;  // a second
  double rotation_flops = 0;
  double moment_flops = 0;
  double eigen_cubes = 0;
  double bytes_read = 0;
  double bytes_streamed = 0;
};

[[nodiscard]] double estimate_seconds(const Work& work, const MachineRates& rates);

// Operations a second of a machine's best matrix products: in the dtype of the forward, in fp32 and in fp64.
struct GemmRates {
  double forward = 0;
  double fp32 = 0;
  double fp64 = 0;
};

// What the work would take if all of it, eigendecompositions included, went as fast as matrix products go.
[[nodiscard]] double ideal_seconds(const Work& work, const GemmRates& peak);

}  // namespace dynslice
