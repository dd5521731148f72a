#include "dynslice/jobs/prepare.h"

#include <ATen/Parallel.h>

#include "dynslice/resources/estimate.h"
#include "dynslice/support/format.h"
#include "dynslice/support/log.h"
#include "dynslice/support/machine.h"
#include "dynslice/tensor/device_memory.h"
#include "dynslice/walk/memory_plan.h"

namespace dynslice {
namespace {

MemoryLimits memory_limits(const CommonOptions& options) {
  MemoryLimits limits;
  if (!options.max_memory.empty()) limits.max_memory = parse_byte_size("--max-memory", options.max_memory);
  if (!options.activation_memory.empty())
    limits.activation_memory = parse_byte_size("--activation-memory", options.activation_memory);
  limits.scratch_folder = options.scratch_dir;
  return limits;
}

}  // namespace

OrderedJson to_json(const DryRun& dry_run) {
  const auto& [job, plan, rates, seconds, output_room, threads] = dry_run;
  OrderedJson parts;
  for (const MemoryPart& part : plan.estimate.parts) parts[part.name] = part.bytes;
  parts["streams"] = plan.activation_bytes;
  OrderedJson json;
  json["dry_run"] = job;
  json["memory"] = {{"bytes", plan.memory_bytes()}, {"limit_bytes", plan.memory_limit}, {"parts", parts}};
  json["disk"] = {{"output_bytes", plan.estimate.output_bytes}, {"scratch_bytes", plan.scratch_bytes}};
  if (output_room) json["disk"]["output_room_bytes"] = *output_room;
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
  json["threads"] = threads;
  return json;
}

TextAmount amount_of(const TokenWindows& windows) { return {windows.count, windows.length}; }

PeakMemory peak_memory(const ComputeOptions& compute) { return {peak_rss_bytes(), peak_device_bytes(compute.device)}; }

void add_peaks(OrderedJson& json, const PeakMemory& peak) {
  json["peak_rss_bytes"] = peak.rss;
  if (peak.device) json["peak_device_bytes"] = *peak.device;
}

void add_cost(OrderedJson& json, double seconds, const PeakMemory& peak) {
  json["wall_seconds"] = seconds;
  add_peaks(json, peak);
}

std::variant<ResourcePlan, DryRun> prepare(const CommonOptions& options, const Checkpoint& checkpoint,
                                           const ComputeOptions& compute, const Job& job) {
  ResourcePlan plan = plan_resources(job.estimator, compute, memory_limits(options), job.stream_bytes);
  if (options.rehearsal) return DryRun{job.verb, std::move(plan), {}, 0, {}, 0};
  if (options.dry_run) {
    const MachineRates rates = measure_rates(checkpoint.config(), compute);
    const double seconds = estimate_seconds(plan.estimate.work, rates);
    const std::optional<uint64_t> room =
        job.output.empty() ? std::nullopt : std::optional(available_disk_bytes(job.output));
    return DryRun{job.verb, std::move(plan), rates, seconds, room, at::get_num_threads()};
  }
  if (plan.compute.chunk_tokens < compute.chunk_tokens) {
    log(LogLevel::kInfo, "To fit into " + format_bytes(plan.memory_limit) + " of memory, only " +
                             std::to_string(plan.compute.chunk_tokens) + " tokens go through a layer together");
  }
  log(LogLevel::kDebug,
      "memory: about " + format_bytes(plan.memory_bytes()) + " of " + format_bytes(plan.memory_limit));
  return plan;
}

}  // namespace dynslice
