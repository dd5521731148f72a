// Slicing a model, as `dynslice slice` does it.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <optional>

#include "dynslice/jobs/outcome.h"
#include "dynslice/jobs/prepare.h"
#include "dynslice/jobs/requests.h"
#include "dynslice/jobs/sizes.h"
#include "dynslice/plan/layer_scores.h"
#include "dynslice/plan/slice_plan.h"
#include "dynslice/support/json.h"
#include "dynslice/support/progress.h"

namespace dynslice {

// How fast the run computed, beside what this machine reaches in matrix products.
struct SliceArithmetic {
  double flops = 0;  // multiplications and additions
  double seconds = 0;
  double share_of_peak = 0;
};

// Beside SliceResult, which is that of slice_model alone.
struct SliceJobResult {
  SlicePlan plan;
  std::optional<LayerScores> scores;  // that the plan was made from
  SizeChange sizes;
  TextAmount calibration;
  at::ScalarType dtype = at::kFloat;  // that it was computed in
  at::Device device = at::kCPU;
  std::filesystem::path output;
  OrderedJson record;  // dynslice.json, as it was written
  double seconds = 0;  // those of runs that were resumed included
  PeakMemory peak;
  std::optional<SliceArithmetic> arithmetic;  // of runs on the CPU that are long enough to say something
};
// As --json prints it.
[[nodiscard]] OrderedJson to_json(const SliceJobResult& result);

// Plans, unless the request names a plan's file, slices, and writes the checkpoint's folder, which appears when it is
// whole. Throws kUsage for options that do not go together and for a folder that may not be replaced, kOutOfResources
// when memory or disk do not suffice, and what reading model, text and plan throws.
[[nodiscard]] Outcome<SliceJobResult> run(const SliceRequest& request, ProgressSink& progress);

}  // namespace dynslice
