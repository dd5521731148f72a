// Measuring how fast models and machine are, as `dynslice bench` does it.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "dynslice/evaluate/speed.h"
#include "dynslice/jobs/outcome.h"
#include "dynslice/jobs/prepare.h"
#include "dynslice/jobs/requests.h"
#include "dynslice/model/config.h"
#include "dynslice/support/json.h"
#include "dynslice/support/progress.h"

namespace dynslice {

struct BenchedModel {
  std::string path;
  uint64_t disk_bytes = 0;  // of its tensors
  ModelCost cost;
  int64_t weight_bytes = 0;  // in memory
  Speed speed;
};

struct BenchedProduct {
  std::string dtype;  // "fp32"
  GemmPeak peak;
};

struct BenchResult {
  std::vector<BenchedProduct> products;  // where the request asks for these, and then nothing below but `threads`
  std::vector<BenchedModel> models;
  std::optional<BenchedModel> against;
  SpeedOptions measured;
  at::ScalarType dtype = at::kFloat;
  at::Device device = at::kCPU;
  PeakMemory peak;  // with all models
  int threads = 0;

  [[nodiscard]] bool has_decoded() const { return measured.decode_tokens > 0; }
};
// As --json prints it.
[[nodiscard]] OrderedJson to_json(const BenchResult& result);

// Measures all models in turns, or the machine's matrix products. Throws kOutOfResources when the models do not fit
// into memory together, kUsage when prompt and decoded tokens exceed a model's maximum, and what reading them throws.
[[nodiscard]] Outcome<BenchResult> run(const BenchRequest& request, ProgressSink& progress);

}  // namespace dynslice
