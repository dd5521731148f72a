// What all jobs promise alike, checked alike.
#pragma once

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <string>
#include <variant>
#include <vector>

#include "dynslice/checkpoint/open_checkpoint.h"
#include "dynslice/formats/safetensors/safetensors_file.h"
#include "dynslice/jobs/outcome.h"
#include "dynslice/jobs/sizes.h"
#include "dynslice/model/checkpoint.h"
#include "dynslice/support/json.h"
#include "dynslice/support/progress.h"
#include "unit/jobs/model_folder.h"

namespace dynslice::testing {

// The job tells what it would need, and leaves the folder as it was. The machine's speed, which all jobs measure alike,
// is left out: it takes longer than everything else.
template <typename Request>
void expect_dry_run(const ModelFolder& folder, Request request, const std::string& job) {
  request.common.dry_run = request.common.rehearsal = true;
  const std::vector<std::string> before = folder.names();
  const auto outcome = run(request, no_progress());
  ASSERT_TRUE(std::holds_alternative<DryRun>(outcome));
  const DryRun& dry_run = std::get<DryRun>(outcome);
  EXPECT_EQ(dry_run.job, job);
  EXPECT_GT(dry_run.plan.memory_bytes(), 0U);
  EXPECT_EQ(folder.names(), before);
}

// A second run of the same command finds with --resume what the first one wrote.
template <typename Result, typename Request>
void expect_earlier_result(const Result& first, Request request) {
  request.common.resume = true;
  const auto outcome = run(request, no_progress());
  ASSERT_TRUE(std::holds_alternative<EarlierResult>(outcome));
  EXPECT_EQ(std::get<EarlierResult>(outcome).output, first.output);
  EXPECT_EQ(to_text(std::get<EarlierResult>(outcome).record), to_text(first.record));
}

// `json` is the record with what the run took and, of a job with an `output`, where that lies.
template <typename Result>
void expect_record_in_json(const Result& result, OrderedJson json, bool has_output = true) {
  EXPECT_EQ(json.at("wall_seconds"), result.seconds);
  EXPECT_EQ(json.at("peak_rss_bytes"), result.peak.rss);
  EXPECT_EQ(json.contains("output"), has_output);
  if (has_output) {
    EXPECT_EQ(json.at("output"), result.output.string());
  }
  for (const char* key : {"wall_seconds", "peak_rss_bytes", "peak_device_bytes", "output"}) json.erase(key);
  EXPECT_EQ(to_text(json), to_text(result.record));
}

// The sizes are those of the models on disk.
inline void expect_sizes_on_disk(const SizeChange& sizes, const std::filesystem::path& before,
                                 const std::filesystem::path& after) {
  const auto source = open_checkpoint(before), written = open_checkpoint(after);
  EXPECT_EQ(sizes.before.parameters, count_cost(source->config()).parameters);
  EXPECT_EQ(sizes.bytes_before, stored_bytes(*source));
  EXPECT_EQ(sizes.after.parameters, count_cost(written->config()).parameters);
  EXPECT_EQ(sizes.bytes_after, stored_bytes(*written));
}

// Of all tensors in a .safetensors file.
inline uint64_t bytes_of_tensors(const std::filesystem::path& path) {
  uint64_t bytes = 0;
  const SafetensorsFile file(path);
  for (const auto& [name, entry] : file.entries()) bytes += entry.bytes;
  return bytes;
}

// Both models have the same tensors; values may differ by `tolerance`.
inline void expect_same_weights(const Checkpoint& model, const Checkpoint& expected, double tolerance = 0) {
  const std::vector<TensorInfo> tensors = expected.tensors();
  ASSERT_EQ(model.tensors().size(), tensors.size());
  for (const TensorInfo& tensor : tensors) {
    const at::Tensor difference =
        model.load(tensor.name, tensor.shape, at::kFloat) - expected.load(tensor.name, tensor.shape, at::kFloat);
    EXPECT_LE(difference.abs().max().item<double>(), tolerance) << tensor.name;
  }
}

// A job that is asked for a number of threads sets LibTorch's for the whole process.
class RestoresThreads {
 public:
  RestoresThreads() = default;
  ~RestoresThreads() { at::set_num_threads(threads_); }
  RestoresThreads(const RestoresThreads&) = delete;
  RestoresThreads& operator=(const RestoresThreads&) = delete;

 private:
  int threads_ = at::get_num_threads();
};

}  // namespace dynslice::testing
