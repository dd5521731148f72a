// Fits a job into the memory there is: what is asked before any work begins, by --dry-run, which prints it, and by
// --max-memory.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>

#include "dynslice/model/checkpoint.h"
#include "dynslice/resources/estimate.h"
#include "dynslice/walk/layer_walk.h"

namespace dynslice {

struct MemoryLimits {
  std::optional<uint64_t> max_memory;         // else what the machine, or the CUDA device, has left
  std::optional<uint64_t> activation_memory;  // else as much as fits
  std::filesystem::path scratch_folder;       // empty: default_scratch_folder()
};

// `stream_bytes` is 0, or what the streams of one turn of windows may take, for verbs that walk their text in turns.
using Estimator = std::function<ResourceEstimate(const ComputeOptions& compute, int64_t stream_bytes)>;

struct ResourcePlan {
  ComputeOptions compute;     // with the chunk size, and the store of the streams when they have to be spilled
  int64_t stream_bytes = 0;   // of one turn; 0 for verbs that have none
  ResourceEstimate estimate;  // with these choices
  uint64_t memory_limit = 0;
  uint64_t activation_bytes = 0;  // of the streams in memory
  uint64_t scratch_bytes = 0;     // of the streams in the scratch file
  std::filesystem::path scratch_folder;
  [[nodiscard]] uint64_t memory_bytes() const { return estimate.fixed_bytes() + activation_bytes; }
};

// Fits the work into the memory there is: smaller turns (verbs that have them: `stream_bytes` > 0), then streams in the
// scratch file, then smaller chunks. None of it changes results beyond rounding. Throws kOutOfResources with the
// estimate, and what to turn down, when nothing helps or the disk lacks the room for the scratch file.
[[nodiscard]] ResourcePlan plan_resources(const Estimator& estimator, const ComputeOptions& compute,
                                          const MemoryLimits& limits, int64_t stream_bytes = 0);

// What perplexity takes for the streams of a turn unless it is told: a quarter of the weights' size, at least 256 MiB,
// at most a quarter of the memory that is left. On a CUDA device, where reading weights anew costs more than anything
// that is done with them, a quarter of what it has left.
[[nodiscard]] int64_t default_turn_bytes(const Checkpoint& checkpoint, at::Device device);

// What gradients take for it: a quarter of the weights' size, from 256 MiB to 2 GiB. What is left on the machine has no
// part in it, since sums over turns round differently.
[[nodiscard]] int64_t gradient_turn_bytes(const Checkpoint& checkpoint);

// Measures this machine at the model's shapes, in about a second.
[[nodiscard]] MachineRates measure_rates(const ModelConfig& config, const ComputeOptions& compute);

}  // namespace dynslice
