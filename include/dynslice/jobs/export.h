// Writing a model as a file of another format, as `dynslice export` does it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "dynslice/checkpoint/gguf_export.h"
#include "dynslice/jobs/outcome.h"
#include "dynslice/jobs/prepare.h"
#include "dynslice/jobs/requests.h"
#include "dynslice/support/json.h"
#include "dynslice/support/progress.h"

namespace dynslice {

struct ExportResult {
  std::string type;  // of the matrices, as it was asked for: "bf16", "q4_k"
  GgufExport file;
  int64_t parameters = 0;
  double seconds = 0;
  PeakMemory peak;
  std::filesystem::path output;
};
// As --json prints it.
[[nodiscard]] OrderedJson to_json(const ExportResult& result);

// Writes the GGUF file, and logs what it cannot say of the model. Throws kUsage for a type that does not exist and for
// a file that may not be replaced, kBadInput for a model that GGUF has no place for, and what reading the model throws.
[[nodiscard]] Outcome<ExportResult> run(const ExportRequest& request, ProgressSink& progress);

}  // namespace dynslice
