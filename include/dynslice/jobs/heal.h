// Training a smaller model back towards what it was, as `dynslice heal` does it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <vector>

#include "dynslice/heal/distill.h"
#include "dynslice/jobs/outcome.h"
#include "dynslice/jobs/prepare.h"
#include "dynslice/jobs/requests.h"
#include "dynslice/support/json.h"
#include "dynslice/support/progress.h"
#include "dynslice/train/training.h"

namespace dynslice {

struct HealResult {
  std::optional<TrainingResult> training;  // on the next token
  std::vector<DistilledLayer> layers;      // of distillation, in its place
  int64_t distilled_tokens = 0;            // all layers together
  OrderedJson record;                      // dynslice.json as it was written
  std::filesystem::path output;
  double seconds = 0;  // those of runs that were resumed included
  PeakMemory peak;
};
// As --json prints it.
[[nodiscard]] OrderedJson to_json(const HealResult& result);

// Writes the healed checkpoint, or the adapter alone. Throws kUsage for fp16, too little text, an original in which the
// model's layers cannot be placed, and an output that may not be written; kBadInput when the loss is no longer a
// number; and what reading models and text throws.
[[nodiscard]] Outcome<HealResult> run(const HealRequest& request, ProgressSink& progress);

}  // namespace dynslice
