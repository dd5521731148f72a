// What every verb that computes does before it begins: fits itself into the memory there is, or, with --dry-run, says
// what it would need.
#pragma once

#include <filesystem>
#include <optional>

#include "cli/inputs.h"
#include "cli/options.h"
#include "dynslice/model/resources.h"

namespace dynslice::cli {

struct Job {
  std::string verb;                // "slice"
  Estimator estimator;             // of everything that the verb will do
  int64_t stream_bytes = 0;        // of a turn, for verbs that walk their text in turns
  std::filesystem::path output{};  // where estimate.output_bytes will be written; empty: nothing is
};

// The plan to run by; nothing when it was a dry run, which has then been printed. Throws kOutOfResources when the job
// cannot fit.
std::optional<ResourcePlan> prepare(const CommonOptions& options, const Checkpoint& checkpoint,
                                    const ComputeOptions& compute, const Job& job);

TextAmount amount_of(const TokenWindows& windows);

}  // namespace dynslice::cli
