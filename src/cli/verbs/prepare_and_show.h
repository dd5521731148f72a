// For verbs that compute and print in one: prepares, and prints what a dry run says.
#pragma once

#include <filesystem>
#include <optional>

#include "cli/show/outcome.h"
#include "dynslice/jobs/checkpoint_output.h"
#include "dynslice/jobs/prepare.h"

namespace dynslice::cli {

// Nothing when it was a dry run, which has then been printed.
inline std::optional<ResourcePlan> prepare_or_show(const CommonOptions& options, const Checkpoint& checkpoint,
                                                   const ComputeOptions& compute, const Job& job) {
  auto prepared = dynslice::prepare(options, checkpoint, compute, job);
  if (auto* plan = std::get_if<ResourcePlan>(&prepared)) return std::move(*plan);
  if (!options.rehearsal) show(std::get<DryRun>(prepared), options.json);
  return std::nullopt;
}

// Whether an earlier run had finished, which is then told.
inline bool is_finished(const CommonOptions& options, const std::filesystem::path& out, const WorkFolder& folder,
                        const OrderedJson& run_description) {
  const auto earlier = earlier_result(options, out, folder, run_description);
  if (earlier) show(*earlier, options.json);
  return earlier.has_value();
}

}  // namespace dynslice::cli
