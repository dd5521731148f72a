#include <ATen/Parallel.h>

#include <iostream>
#include <memory>

#include "cli/inputs.h"
#include "cli/resources.h"
#include "cli/verbs.h"
#include "dynslice/evaluate/speed.h"

namespace dynslice::cli {
namespace {

// A model that is measured, and what came of it.
struct Measured {
  std::string path;
  ModelCost cost;
  ResidentModel model;
  Speed speed;
};

Measured load(const Checkpoint& checkpoint, const ComputeOptions& compute, TerminalProgress& progress) {
  return {
      checkpoint.path().string(), count_cost(checkpoint.config()), ResidentModel(checkpoint, compute, progress), {}};
}

// All models together: they are in memory at the same time, and measured in turns.
ResourceEstimate estimate_bench(const std::vector<std::shared_ptr<const Checkpoint>>& checkpoints,
                                const ComputeOptions& compute, const BenchOptions& options) {
  const ResidentUse use{options.batch, options.prompt_tokens, options.decode_tokens, options.repeats + 1};
  ResourceEstimate all = estimate_resident(*checkpoints.front(), compute, use);
  for (size_t i = 1; i < checkpoints.size(); ++i) {
    const ResourceEstimate other = estimate_resident(*checkpoints[i], compute, use);
    for (const MemoryPart& part : other.parts) {
      if (part.name == "weights" || part.name == "cache") all.parts.push_back({"against_" + part.name, part.bytes});
    }
    all.work += other.work;
  }
  return all;
}

OrderedJson to_json(const Measured& measured, bool decoded) {
  const Speed& speed = measured.speed;
  OrderedJson json;
  json["model"] = measured.path;
  json["parameters"] = measured.cost.parameters;
  json["multiply_adds_per_token"] = measured.cost.multiply_adds_per_token;
  json["weight_bytes"] = measured.model.weight_bytes();
  json["cache_bytes"] = speed.cache_bytes;
  json["prefill"] = {{"tokens_per_second", speed.prefill_tokens_per_second}, {"seconds", speed.prefill_seconds}};
  if (decoded) {
    json["decode"] = {{"tokens_per_second", speed.decode_tokens_per_second}, {"seconds", speed.decode_seconds}};
    for (const auto& [name, q] : {std::pair{"p50", 0.5}, {"p90", 0.9}, {"p99", 0.99}}) {
      json["decode"]["latency_seconds"][name] = quantile(speed.token_seconds, q);
    }
  }
  return json;
}

void run_gemm(const BenchOptions& options) {
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

void print_speeds(const std::vector<Measured>& all, const BenchOptions& options, const ComputeOptions& compute) {
  std::vector<std::vector<std::string>> rows;
  for (const Measured& one : all) {
    const Speed& speed = one.speed;
    const auto latency = [&](double q) {
      return speed.token_seconds.empty() ? "-" : format_fixed(1000 * quantile(speed.token_seconds, q), 2);
    };
    rows.push_back({one.path, format_fixed(speed.prefill_tokens_per_second, 1),
                    format_fixed(speed.decode_tokens_per_second, 1), latency(0.5), latency(0.9), latency(0.99),
                    format_bytes(static_cast<uint64_t>(one.model.weight_bytes())), format_count(one.cost.parameters)});
  }
  print_table({"model", "prefill tokens/s", "decode tokens/s", "p50 ms", "p90 ms", "p99 ms", "weights", "parameters"},
              rows);
  if (all.size() > 1) {
    std::cout << "Ratio of the first to the second: prefill "
              << format_fixed(all[0].speed.prefill_tokens_per_second / all[1].speed.prefill_tokens_per_second, 2);
    if (options.decode_tokens > 0) {
      std::cout << ", decode "
                << format_fixed(all[0].speed.decode_tokens_per_second / all[1].speed.decode_tokens_per_second, 2);
    }
    std::cout << ".\n";
  }
  std::cout << "Medians of " << options.repeats << " repeats after one to warm up; " << options.batch
            << " sequence(s), prompts of " << options.prompt_tokens << " tokens, " << options.decode_tokens
            << " decoded; " << dtype_name(compute.dtype) << " on " << compute.device.str() << ", "
            << at::get_num_threads() << " thread(s); peak memory " << format_bytes(peak_rss_bytes()) << ".\n";
}

}  // namespace

void run(const BenchOptions& options, TerminalProgress& progress) {
  if (options.gemm) {
    run_gemm(options);
    return;
  }
  const ComputeOptions compute = resolve_compute(options.common.device, options.common.dtype);
  std::vector<std::shared_ptr<const Checkpoint>> checkpoints{open_model(options.common, progress)};
  if (!options.against.empty()) {
    CommonOptions other = options.common;
    other.model = options.against;
    checkpoints.push_back(open_model(other, progress));
  }
  const Job job{"bench",
                [&](const ComputeOptions& with, int64_t) { return estimate_bench(checkpoints, with, options); }};
  if (!prepare(options.common, *checkpoints.front(), compute, job)) return;
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
  const bool decoded = options.decode_tokens > 0;
  OrderedJson json = to_json(all[0], decoded);
  if (all.size() > 1) {
    json["against"] = to_json(all[1], decoded);
    json["ratio"]["prefill"] = speeds[0].prefill_tokens_per_second / speeds[1].prefill_tokens_per_second;
    if (decoded) json["ratio"]["decode"] = speeds[0].decode_tokens_per_second / speeds[1].decode_tokens_per_second;
  }
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
