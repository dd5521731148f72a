// What a model is, as `dynslice inspect` tells it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>

#include "dynslice/jobs/outcome.h"
#include "dynslice/jobs/requests.h"
#include "dynslice/model/config.h"
#include "dynslice/support/json.h"
#include "dynslice/support/progress.h"

namespace dynslice {

struct InspectResult {
  std::filesystem::path path;
  ModelConfig config;
  ModelCost cost;
  uint64_t bytes = 0;  // of the tensors, as they are stored
  std::map<std::string, uint64_t> bytes_by_dtype;
};
// As --json prints it.
[[nodiscard]] OrderedJson to_json(const InspectResult& result);

// Reads the configuration and the list of tensors. Throws what opening the model throws.
[[nodiscard]] Outcome<InspectResult> run(const InspectRequest& request, ProgressSink& progress);

}  // namespace dynslice
