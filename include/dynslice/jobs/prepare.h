// What every verb that computes does before it begins: fits itself into the memory there is, or, with --dry-run, says
// what it would need.
#pragma once

#include <chrono>
#include <filesystem>
#include <optional>
#include <string>
#include <variant>

#include "dynslice/jobs/inputs.h"
#include "dynslice/jobs/outcome.h"
#include "dynslice/jobs/requests.h"
#include "dynslice/resources/estimate.h"
#include "dynslice/walk/memory_plan.h"

namespace dynslice {

struct Job {
  std::string verb;                // "slice"
  Estimator estimator;             // of everything that the verb will do
  int64_t stream_bytes = 0;        // of a turn, for verbs that walk their text in turns
  std::filesystem::path output{};  // where estimate.output_bytes will be written; empty: nothing is
};

// The plan to run by, or what a dry run says. Throws kOutOfResources when the job cannot fit.
[[nodiscard]] std::variant<ResourcePlan, DryRun> prepare(const CommonOptions& options, const Checkpoint& checkpoint,
                                                         const ComputeOptions& compute, const Job& job);

// For the time that a job takes.
[[nodiscard]] inline double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

[[nodiscard]] TextAmount amount_of(const TokenWindows& windows);

// The most that the run had of the machine's memory, and of the device's when it computed on one.
struct PeakMemory {
  uint64_t rss = 0;
  std::optional<uint64_t> device;
};
[[nodiscard]] PeakMemory peak_memory(const ComputeOptions& compute);

// As the keys "peak_rss_bytes" and "peak_device_bytes".
void add_peaks(OrderedJson& json, const PeakMemory& peak);
// The same behind "wall_seconds".
void add_cost(OrderedJson& json, double seconds, const PeakMemory& peak);

}  // namespace dynslice
