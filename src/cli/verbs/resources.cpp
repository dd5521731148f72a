#include "cli/verbs/resources.h"

#include <ATen/Parallel.h>

#include <iostream>

#include "cli/show/terminal.h"
#include "dynslice/resources/estimate.h"
#include "dynslice/support/log.h"
#include "dynslice/support/machine.h"
#include "dynslice/tensor/device_memory.h"
#include "dynslice/walk/memory_plan.h"

namespace dynslice::cli {
namespace {

MemoryLimits memory_limits(const CommonOptions& options) {
  MemoryLimits limits;
  if (!options.max_memory.empty()) limits.max_memory = parse_byte_size("--max-memory", options.max_memory);
  if (!options.activation_memory.empty())
    limits.activation_memory = parse_byte_size("--activation-memory", options.activation_memory);
  limits.scratch_folder = options.scratch_dir;
  return limits;
}

OrderedJson describe(const Job& job, const ResourcePlan& plan, const MachineRates& rates, double seconds) {
  OrderedJson parts;
  for (const MemoryPart& part : plan.estimate.parts) parts[part.name] = part.bytes;
  parts["streams"] = plan.activation_bytes;
  OrderedJson json;
  json["dry_run"] = job.verb;
  json["memory"] = {{"bytes", plan.memory_bytes()}, {"limit_bytes", plan.memory_limit}, {"parts", parts}};
  json["disk"] = {{"output_bytes", plan.estimate.output_bytes}, {"scratch_bytes", plan.scratch_bytes}};
  if (!job.output.empty()) json["disk"]["output_room_bytes"] = available_disk_bytes(job.output);
  const Work& work = plan.estimate.work;
  json["time"] = {{"seconds", seconds},
                  {"work",
                   {{"forward_flops", work.forward_flops},
                    {"rotation_flops", work.rotation_flops},
                    {"moment_flops", work.moment_flops},
                    {"eigen_cubes", work.eigen_cubes},
                    {"bytes_read", work.bytes_read},
                    {"bytes_streamed", work.bytes_streamed}}},
                  {"rates",
                   {{"forward_flops", rates.forward_flops},
                    {"rotation_flops", rates.rotation_flops},
                    {"moment_flops", rates.moment_flops},
                    {"eigen_cubes", rates.eigen_cubes},
                    {"bytes_read", rates.bytes_read},
                    {"bytes_streamed", rates.bytes_streamed}}}};
  json["chunk_tokens"] = plan.compute.chunk_tokens;
  json["threads"] = at::get_num_threads();
  return json;
}

void print(const Job& job, const ResourcePlan& plan, const MachineRates& rates, double seconds) {
  std::vector<std::vector<std::string>> rows;
  for (const MemoryPart& part : plan.estimate.parts) {
    std::string name = part.name;
    for (char& c : name) c = c == '_' ? ' ' : c;
    rows.push_back({"  " + name, format_bytes(part.bytes)});
  }
  if (plan.estimate.stream_bytes > 0) rows.push_back({"  streams", format_bytes(plan.activation_bytes)});
  rows.push_back({"memory, at the most", format_bytes(plan.memory_bytes())});
  rows.push_back({"  of", format_bytes(plan.memory_limit)});
  if (plan.estimate.output_bytes > 0) rows.push_back({"disk, output", format_bytes(plan.estimate.output_bytes)});
  if (plan.scratch_bytes > 0) rows.push_back({"disk, scratch file", format_bytes(plan.scratch_bytes)});
  rows.push_back({"time, about", format_duration(seconds)});
  print_table({job.verb + " would need", ""}, rows);
  if (plan.estimate.work.flops() == 0) {
    std::cout << "\nThe time is that of reading and writing at " << format_fixed(rates.bytes_read / 1e9, 0)
              << " GB/s. Nothing was done.\n";
    return;
  }
  std::cout << "\nThe time is counted products at the rates of this machine just now ("
            << format_fixed(rates.forward_flops / 1e9, 0) << " GFLOP/s in " << dtype_name(plan.compute.dtype) << ", "
            << at::get_num_threads() << " threads). Nothing was done.\n";
}

}  // namespace

TextAmount amount_of(const TokenWindows& windows) { return {windows.count, windows.length}; }

PeakMemory peak_memory(const ComputeOptions& compute) { return {peak_rss_bytes(), peak_device_bytes(compute.device)}; }

void add_peaks(OrderedJson& json, const PeakMemory& peak) {
  json["peak_rss_bytes"] = peak.rss;
  if (peak.device) json["peak_device_bytes"] = *peak.device;
}

std::optional<ResourcePlan> prepare(const CommonOptions& options, const Checkpoint& checkpoint,
                                    const ComputeOptions& compute, const Job& job) {
  ResourcePlan plan = plan_resources(job.estimator, compute, memory_limits(options), job.stream_bytes);
  if (options.rehearsal) return std::nullopt;
  if (options.dry_run) {
    const MachineRates rates = measure_rates(checkpoint.config(), compute);
    const double seconds = estimate_seconds(plan.estimate.work, rates);
    if (options.json) {
      std::cout << to_text(describe(job, plan, rates, seconds));
    } else {
      print(job, plan, rates, seconds);
    }
    return std::nullopt;
  }
  if (plan.compute.chunk_tokens < compute.chunk_tokens) {
    log(LogLevel::kInfo, "To fit into " + format_bytes(plan.memory_limit) + " of memory, only " +
                             std::to_string(plan.compute.chunk_tokens) + " tokens go through a layer together");
  }
  log(LogLevel::kDebug,
      "memory: about " + format_bytes(plan.memory_bytes()) + " of " + format_bytes(plan.memory_limit));
  return plan;
}

}  // namespace dynslice::cli
