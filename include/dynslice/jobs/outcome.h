// What a job comes to: its result, or a reason why it did not run.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <variant>

#include "dynslice/support/json.h"
#include "dynslice/walk/memory_plan.h"

namespace dynslice {

// With dry_run: what the job would need.
struct DryRun {
  std::string job;  // "slice"
  ResourcePlan plan;
  MachineRates rates;                   // of this machine just now; none with rehearsal
  double seconds = 0;                   // that it would take, about
  std::optional<uint64_t> output_room;  // bytes left where the output would lie
  int threads = 0;
};
// As --json prints it.
[[nodiscard]] OrderedJson to_json(const DryRun& dry_run);

// With resume, where an earlier run of the very same job had finished: nothing is left to do.
struct EarlierResult {
  std::filesystem::path output;
  OrderedJson record;  // that it wrote
};

template <typename Result>
using Outcome = std::variant<Result, DryRun, EarlierResult>;

}  // namespace dynslice
