#include "dynslice/walk/memory_plan.h"

#include <algorithm>
#include <sstream>

#include "dynslice/support/error.h"
#include "dynslice/support/machine.h"
#include "dynslice/support/scratch_file.h"
#include "dynslice/tensor/device_memory.h"

namespace dynslice {
namespace {

std::string megabytes(uint64_t bytes) {
  std::ostringstream text;
  text << (bytes + 999'999) / 1'000'000 << " MB";
  return text.str();
}

std::string list_parts(const ResourceEstimate& estimate) {
  std::ostringstream text;
  for (const MemoryPart& part : estimate.parts) {
    std::string name = part.name;
    std::replace(name.begin(), name.end(), '_', ' ');
    text << (text.tellp() > 0 ? ", " : "") << name << ' ' << megabytes(part.bytes);
  }
  return text.str();
}

[[noreturn]] void refuse(const ResourcePlan& plan, const ComputeOptions& asked, const MemoryLimits& limits) {
  const std::string limit = limits.max_memory ? "--max-memory " + megabytes(plan.memory_limit)
                                              : std::string("the ") + (asked.device.is_cuda() ? "device" : "machine") +
                                                    " has " + megabytes(plan.memory_limit) + " left";
  throw_error(ErrorKind::kOutOfResources, "not enough memory: this needs about ", megabytes(plan.memory_bytes()), " (",
              list_parts(plan.estimate), ", streams ", megabytes(plan.activation_bytes), ") and ", limit,
              plan.estimate.stream_bytes == 0 ? "; " : "; lower --seqlen, ",
              limits.activation_memory ? "lower --activation-memory, " : "",
              asked.device.is_cuda() ? "compute with --device cpu, " : "lower --threads, ",
              limits.max_memory        ? "or raise --max-memory"
              : asked.device.is_cuda() ? "or use a device with more memory"
                                       : "or use a machine with more memory");
}

// The streams of `plan` in memory as far as they may be, the rest in the scratch file.
void place_streams(ResourcePlan& plan, const MemoryLimits& limits) {
  const uint64_t fixed = plan.estimate.fixed_bytes(), streams = plan.estimate.stream_bytes;
  const uint64_t left = plan.memory_limit - std::min(plan.memory_limit, fixed);
  plan.activation_bytes = std::min(streams, limits.activation_memory.value_or(left));
  plan.scratch_bytes = streams - plan.activation_bytes;
}

// What the work may take where it is done. What this process has already is not among what the machine has left, but in
// the estimate.
uint64_t available_bytes(at::Device device) {
  if (device.is_cuda()) return free_device_bytes(device).value_or(uint64_t{1} << 62);
  return available_memory_bytes() + current_rss_bytes();
}

bool fits(const ResourcePlan& plan) { return plan.memory_bytes() <= plan.memory_limit; }

void check_scratch(const ResourcePlan& plan) {
  const uint64_t room = available_disk_bytes(plan.scratch_folder);
  if (plan.scratch_bytes <= room) return;
  throw_error(ErrorKind::kOutOfResources, plan.scratch_folder.string(), ": the residual streams beyond ",
              megabytes(plan.activation_bytes), " of memory need ", megabytes(plan.scratch_bytes),
              " of scratch file, the disk has ", megabytes(room),
              " left; lower --samples, raise --activation-memory, or choose another folder with --scratch-dir");
}

}  // namespace

ResourcePlan plan_resources(const Estimator& estimator, const ComputeOptions& compute, const MemoryLimits& limits,
                            int64_t stream_bytes) {
  ResourcePlan plan;
  plan.compute = compute;
  plan.stream_bytes = stream_bytes;
  plan.scratch_folder = limits.scratch_folder.empty() ? default_scratch_folder() : limits.scratch_folder;
  plan.memory_limit = limits.max_memory ? *limits.max_memory : available_bytes(compute.device);
  const auto estimate = [&] { plan.estimate = estimator(plan.compute, plan.stream_bytes); };
  estimate();
  if (stream_bytes > 0) {  // turns cost less than a scratch file
    const uint64_t fixed = plan.estimate.fixed_bytes();
    const uint64_t left = plan.memory_limit - std::min(plan.memory_limit, fixed);
    plan.stream_bytes =
        std::max<int64_t>(1, static_cast<int64_t>(std::min<uint64_t>(static_cast<uint64_t>(stream_bytes), left)));
    estimate();
  }
  place_streams(plan, limits);
  while (!fits(plan) && plan.compute.chunk_tokens > 1) {
    const uint64_t before = plan.estimate.fixed_bytes();
    plan.compute.chunk_tokens /= 2;
    estimate();
    place_streams(plan, limits);
    // Chunks are whole windows, so that below one of them nothing changes.
    if (plan.compute.chunk_tokens < 16 && plan.estimate.fixed_bytes() >= before) break;
  }
  if (!fits(plan)) refuse(plan, compute, limits);
  check_scratch(plan);
  if (plan.scratch_bytes > 0)
    plan.compute.activations = std::make_shared<ActivationStore>(plan.activation_bytes, plan.scratch_folder);
  return plan;
}

int64_t default_turn_bytes(const Checkpoint& checkpoint, at::Device device) {
  constexpr int64_t kLeast = int64_t{256} << 20;
  if (const auto free_memory = free_device_bytes(device)) {
    return std::max(kLeast, static_cast<int64_t>(std::min<uint64_t>(*free_memory / 4, INT64_MAX)));
  }
  const auto weights = static_cast<int64_t>(stored_bytes(checkpoint));
  const auto free_memory = static_cast<int64_t>(std::min<uint64_t>(available_memory_bytes(), INT64_MAX));
  return std::max(kLeast, std::min(weights / 4, free_memory / 4));
}

int64_t gradient_turn_bytes(const Checkpoint& checkpoint) {
  return std::clamp(static_cast<int64_t>(stored_bytes(checkpoint) / 4), int64_t{256} << 20, int64_t{2} << 30);
}

}  // namespace dynslice
