#include "dynslice/jobs/bench.h"

#include <ATen/Parallel.h>

#include <memory>
#include <utility>
#include <variant>

#include "dynslice/jobs/inputs.h"
#include "dynslice/resources/estimate.h"
#include "dynslice/support/error.h"
#include "dynslice/tensor/dtype.h"
#include "dynslice/walk/resident_model.h"
#include "dynslice/walk/walk_estimate.h"

namespace dynslice {
namespace {

// The models in the order in which they are measured: MODEL, MORE and --against.
using BenchCheckpoints = std::vector<std::shared_ptr<const Checkpoint>>;

BenchCheckpoints open_benched_models(const BenchRequest& options, ProgressSink& progress) {
  BenchCheckpoints checkpoints{open_model(options.common, progress)};
  std::vector<std::string> names = options.others;
  if (!options.against.empty()) names.push_back(options.against);
  for (const std::string& name : names) {
    checkpoints.push_back(open_model(options.common, name, progress));
  }
  return checkpoints;
}

// All models together: they are in memory at the same time, and measured in turns.
ResourceEstimate estimate_bench(const BenchCheckpoints& checkpoints, const ComputeOptions& compute,
                                const BenchRequest& options) {
  const ResidentUse use{options.batch, options.prompt_tokens, options.decode_tokens, options.repeats + 1};
  ResourceEstimate all = estimate_resident(*checkpoints.front(), compute, use);
  for (size_t i = 1; i < checkpoints.size(); ++i) {
    const bool is_against = !options.against.empty() && i + 1 == checkpoints.size();
    add_resident(all, *checkpoints[i], compute, use, is_against ? "against_" : "others_");
  }
  return all;
}

// Says so when it is the number of models that is too much.
std::variant<ResourcePlan, DryRun> prepare_bench(const BenchCheckpoints& checkpoints, const ComputeOptions& compute,
                                                 const BenchRequest& options) {
  const Job job{"bench",
                [&](const ComputeOptions& with, int64_t) { return estimate_bench(checkpoints, with, options); }};
  try {
    return prepare(options.common, *checkpoints.front(), compute, job);
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kOutOfResources || checkpoints.size() == 1) throw;
    throw_error(error.kind(), error.what(), "; the ", checkpoints.size(),
                " models are in memory together: measure fewer at a time, or in --dtype bf16");
  }
}

OrderedJson speed_ratio(const BenchedModel& model, const BenchedModel& against, bool decoded) {
  OrderedJson json;
  json["prefill"] = model.speed.prefill_tokens_per_second / against.speed.prefill_tokens_per_second;
  if (decoded) json["decode"] = model.speed.decode_tokens_per_second / against.speed.decode_tokens_per_second;
  return json;
}

OrderedJson speed_json(const BenchedModel& model, bool decoded) {
  const Speed& speed = model.speed;
  OrderedJson json;
  json["model"] = model.path;
  json["parameters"] = model.cost.parameters;
  json["multiply_adds_per_token"] = model.cost.multiply_adds_per_token;
  json["disk_bytes"] = model.disk_bytes;
  json["weight_bytes"] = model.weight_bytes;
  json["cache_bytes"] = speed.cache_bytes;
  json["prefill"] = {{"tokens_per_second", speed.prefill_tokens_per_second}, {"seconds", speed.prefill_seconds}};
  if (decoded) {
    json["decode"] = {{"tokens_per_second", speed.decode_tokens_per_second}, {"seconds", speed.decode_seconds}};
    for (const auto& [name, q] : {std::pair{"p50", 0.5}, {"p90", 0.9}, {"p95", 0.95}, {"p99", 0.99}}) {
      json["decode"]["latency_seconds"][name] = quantile(speed.token_seconds, q);
    }
  }
  return json;
}

// One model's keys stand at the top; of several each is an item of "models". --against is apart from both.
OrderedJson models_json(const BenchResult& result) {
  const bool decoded = result.has_decoded(), is_alone = result.models.size() == 1;
  OrderedJson json;
  if (is_alone) json = speed_json(result.models.front(), decoded);
  for (size_t i = 0; !is_alone && i < result.models.size(); ++i) {
    OrderedJson one = speed_json(result.models[i], decoded);
    if (result.against) one["ratio"] = speed_ratio(result.models[i], *result.against, decoded);
    json["models"].push_back(std::move(one));
  }
  if (result.against) {
    json["against"] = speed_json(*result.against, decoded);
    if (is_alone) json["ratio"] = speed_ratio(result.models.front(), *result.against, decoded);
  }
  return json;
}

OrderedJson products_json(const BenchResult& result) {
  OrderedJson json;
  json["threads"] = result.threads;
  for (const auto& [dtype, peak] : result.products) {
    json["gemm"][dtype] = {{"gflops", peak.gflops}, {"library", peak.library}};
  }
  return json;
}

BenchResult measure_products(const BenchRequest& options) {
  if (options.common.threads > 0) at::set_num_threads(options.common.threads);
  BenchResult result;
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kDouble}) {
    result.products.push_back({dtype_name(dtype), measure_gemm_peak(dtype)});
  }
  result.threads = at::get_num_threads();
  return result;
}

// Loads the models one after the other, letting go of each one's files, and measures them in turns.
std::vector<BenchedModel> measure_models(BenchCheckpoints& checkpoints, const ComputeOptions& compute,
                                         const SpeedOptions& how, ProgressSink& progress) {
  std::vector<BenchedModel> all;
  std::vector<ResidentModel> loaded;
  loaded.reserve(checkpoints.size());
  for (auto& checkpoint : checkpoints) {
    loaded.emplace_back(*checkpoint, compute, progress);
    all.push_back({.path = checkpoint->path().string(),
                   .disk_bytes = stored_bytes(*checkpoint),
                   .cost = count_cost(checkpoint->config()),
                   .weight_bytes = loaded.back().weight_bytes(),
                   .speed = {}});
    checkpoint.reset();
  }
  std::vector<const ResidentModel*> models;
  for (const ResidentModel& one : loaded) models.push_back(&one);
  const std::vector<Speed> speeds = measure_speed(models, how, progress);
  for (size_t i = 0; i < all.size(); ++i) all[i].speed = speeds[i];
  return all;
}

}  // namespace

OrderedJson to_json(const BenchResult& result) {
  if (!result.products.empty()) return products_json(result);
  OrderedJson json = models_json(result);
  json["batch"] = result.measured.batch;
  json["prompt_tokens"] = result.measured.prompt_tokens;
  json["decode_tokens"] = result.measured.decode_tokens;
  json["repeats"] = result.measured.repeats;
  json["dtype"] = dtype_name(result.dtype);
  json["device"] = result.device.str();
  json["threads"] = result.threads;
  add_peaks(json, result.peak);
  return json;
}

Outcome<BenchResult> run(const BenchRequest& options, ProgressSink& progress) {
  if (options.gemm) return measure_products(options);
  const ComputeOptions compute = resolve_compute(options.common.device, options.common.dtype);
  BenchCheckpoints checkpoints = open_benched_models(options, progress);
  auto prepared = prepare_bench(checkpoints, compute, options);
  if (auto* dry_run = std::get_if<DryRun>(&prepared)) return std::move(*dry_run);
  BenchResult result;
  result.measured = {.prompt_tokens = options.prompt_tokens,
                     .decode_tokens = options.decode_tokens,
                     .repeats = options.repeats,
                     .batch = options.batch};
  result.models = measure_models(checkpoints, compute, result.measured, progress);
  if (!options.against.empty()) {
    result.against = std::move(result.models.back());
    result.models.pop_back();
  }
  result.dtype = compute.dtype;
  result.device = compute.device;
  result.peak = peak_memory(compute);
  result.threads = at::get_num_threads();
  return result;
}

}  // namespace dynslice
