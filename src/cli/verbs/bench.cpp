#include <ATen/Parallel.h>

#include <iostream>
#include <memory>

#include "cli/verbs/prepare_and_show.h"
#include "cli/verbs/verbs.h"
#include "dynslice/evaluate/speed.h"
#include "dynslice/jobs/inputs.h"
#include "dynslice/jobs/prepare.h"
#include "dynslice/resources/estimate.h"
#include "dynslice/support/error.h"
#include "dynslice/walk/walk_estimate.h"

namespace dynslice::cli {
namespace {

// A model that is measured, and what came of it.
struct Measured {
  std::string path;
  uint64_t disk_bytes = 0;  // of its tensors
  ModelCost cost;
  ResidentModel model;
  Speed speed;
};

Measured load(const Checkpoint& checkpoint, const ComputeOptions& compute, TerminalProgress& progress) {
  return {checkpoint.path().string(),
          stored_bytes(checkpoint),
          count_cost(checkpoint.config()),
          ResidentModel(checkpoint, compute, progress),
          {}};
}

// The models in the order in which they are measured: MODEL, MORE and --against.
using Checkpoints = std::vector<std::shared_ptr<const Checkpoint>>;

Checkpoints open_models(const BenchRequest& options, TerminalProgress& progress) {
  Checkpoints checkpoints{open_model(options.common, progress)};
  std::vector<std::string> names = options.others;
  if (!options.against.empty()) names.push_back(options.against);
  for (const std::string& name : names) {
    checkpoints.push_back(open_model(options.common, name, progress));
  }
  return checkpoints;
}

// All models together: they are in memory at the same time, and measured in turns.
ResourceEstimate estimate_bench(const Checkpoints& checkpoints, const ComputeOptions& compute,
                                const BenchRequest& options) {
  const ResidentUse use{options.batch, options.prompt_tokens, options.decode_tokens, options.repeats + 1};
  ResourceEstimate all = estimate_resident(*checkpoints.front(), compute, use);
  for (size_t i = 1; i < checkpoints.size(); ++i) {
    const bool is_against = !options.against.empty() && i + 1 == checkpoints.size();
    add_resident(all, *checkpoints[i], compute, use, is_against ? "against_" : "others_");
  }
  return all;
}

// Whether to go on; says so when it is the number of models that is too much.
bool prepare_bench(const Checkpoints& checkpoints, const ComputeOptions& compute, const BenchRequest& options) {
  const Job job{"bench",
                [&](const ComputeOptions& with, int64_t) { return estimate_bench(checkpoints, with, options); }};
  try {
    return prepare_or_show(options.common, *checkpoints.front(), compute, job).has_value();
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kOutOfResources || checkpoints.size() == 1) throw;
    throw_error(error.kind(), error.what(), "; the ", checkpoints.size(),
                " models are in memory together: measure fewer at a time, or in --dtype bf16");
  }
}

OrderedJson ratio_of(const Speed& speed, const Speed& against, bool decoded) {
  OrderedJson json;
  json["prefill"] = speed.prefill_tokens_per_second / against.prefill_tokens_per_second;
  if (decoded) json["decode"] = speed.decode_tokens_per_second / against.decode_tokens_per_second;
  return json;
}

OrderedJson speed_json(const Measured& measured, bool decoded) {
  const Speed& speed = measured.speed;
  OrderedJson json;
  json["model"] = measured.path;
  json["parameters"] = measured.cost.parameters;
  json["multiply_adds_per_token"] = measured.cost.multiply_adds_per_token;
  json["disk_bytes"] = measured.disk_bytes;
  json["weight_bytes"] = measured.model.weight_bytes();
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
OrderedJson results_json(const std::vector<Measured>& all, const BenchRequest& options) {
  const bool decoded = options.decode_tokens > 0;
  const Measured* against = options.against.empty() ? nullptr : &all.back();
  const size_t models = all.size() - (against != nullptr ? 1 : 0);
  OrderedJson json;
  if (models == 1) json = speed_json(all.front(), decoded);
  for (size_t i = 0; models > 1 && i < models; ++i) {
    OrderedJson one = speed_json(all[i], decoded);
    if (against != nullptr) one["ratio"] = ratio_of(all[i].speed, against->speed, decoded);
    json["models"].push_back(std::move(one));
  }
  if (against != nullptr) {
    json["against"] = speed_json(*against, decoded);
    if (models == 1) json["ratio"] = ratio_of(all.front().speed, against->speed, decoded);
  }
  return json;
}

void run_gemm(const BenchRequest& options) {
  if (options.common.threads > 0) at::set_num_threads(options.common.threads);
  OrderedJson json;
  json["threads"] = at::get_num_threads();
  std::vector<std::vector<std::string>> rows;
  for (const auto& [name, dtype] : {std::pair{"fp32", at::kFloat}, {"bf16", at::kBFloat16}, {"fp64", at::kDouble}}) {
    const GemmPeak peak = measure_gemm_peak(dtype);
    json["gemm"][name] = {{"gflops", peak.gflops}, {"library", peak.library}};
    rows.push_back({name, format_fixed(peak.gflops, 0), peak.library});
  }
  if (options.common.json) {
    std::cout << to_text(json);
    return;
  }
  print_table({"product", "GFLOP/s", "library"}, rows);
  std::cout << at::get_num_threads() << " thread(s).\n";
}

// "Ratio of the first to the second: prefill 1.20, decode 1.31.", or a line for every model before --against.
void print_ratios(const std::vector<Measured>& all, const BenchRequest& options) {
  if (options.against.empty()) return;
  const Speed& against = all.back().speed;
  for (size_t i = 0; i + 1 < all.size(); ++i) {
    const Speed& speed = all[i].speed;
    std::cout << "Ratio of " << (all.size() == 2 ? "the first to the second" : all[i].path + " to " + all.back().path)
              << ": prefill " << format_fixed(speed.prefill_tokens_per_second / against.prefill_tokens_per_second, 2);
    if (options.decode_tokens > 0) {
      std::cout << ", decode " << format_fixed(speed.decode_tokens_per_second / against.decode_tokens_per_second, 2);
    }
    std::cout << ".\n";
  }
}

void print_speeds(const std::vector<Measured>& all, const BenchRequest& options, const ComputeOptions& compute) {
  std::vector<std::vector<std::string>> rows;
  for (const Measured& one : all) {
    const Speed& speed = one.speed;
    const auto latency = [&](double q) {
      return speed.token_seconds.empty() ? "-" : format_fixed(1000 * quantile(speed.token_seconds, q), 2);
    };
    rows.push_back({one.path, format_fixed(speed.prefill_tokens_per_second, 1),
                    format_fixed(speed.decode_tokens_per_second, 1), latency(0.5), latency(0.95),
                    format_bytes(one.disk_bytes), format_bytes(static_cast<uint64_t>(one.model.weight_bytes())),
                    format_bytes(static_cast<uint64_t>(speed.cache_bytes)), format_count(one.cost.parameters)});
  }
  print_table(
      {"model", "prefill tokens/s", "decode tokens/s", "p50 ms", "p95 ms", "on disk", "weights", "cache", "parameters"},
      rows);
  print_ratios(all, options);
  std::cout << "Medians of " << options.repeats << " repeats after one to warm up; " << options.batch
            << " sequence(s), prompts of " << options.prompt_tokens << " tokens, " << options.decode_tokens
            << " decoded; " << dtype_name(compute.dtype) << " on " << compute.device.str() << ", "
            << at::get_num_threads() << " thread(s); peak memory " << format_bytes(peak_rss_bytes())
            << (all.size() > 1 ? " with all models" : "") << ".\n";
}

}  // namespace

void run(const BenchRequest& options, TerminalProgress& progress) {
  if (options.gemm) {
    run_gemm(options);
    return;
  }
  const ComputeOptions compute = resolve_compute(options.common.device, options.common.dtype);
  Checkpoints checkpoints = open_models(options, progress);
  if (!prepare_bench(checkpoints, compute, options)) return;
  std::vector<Measured> all;
  all.reserve(checkpoints.size());
  for (auto& checkpoint : checkpoints) {
    all.push_back(load(*checkpoint, compute, progress));
    checkpoint.reset();
  }
  std::vector<const ResidentModel*> models;
  for (const Measured& one : all) models.push_back(&one.model);
  const std::vector<Speed> speeds =
      measure_speed(models, {options.prompt_tokens, options.decode_tokens, options.repeats, options.batch}, progress);
  for (size_t i = 0; i < all.size(); ++i) all[i].speed = speeds[i];
  if (!options.common.json) {
    print_speeds(all, options, compute);
    return;
  }
  OrderedJson json = results_json(all, options);
  json["batch"] = options.batch;
  json["prompt_tokens"] = options.prompt_tokens;
  json["decode_tokens"] = options.decode_tokens;
  json["repeats"] = options.repeats;
  json["dtype"] = dtype_name(compute.dtype);
  json["device"] = compute.device.str();
  json["threads"] = at::get_num_threads();
  add_peaks(json, peak_memory(compute));
  std::cout << to_text(json);
}

}  // namespace dynslice::cli
