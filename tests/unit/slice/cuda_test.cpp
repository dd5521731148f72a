// Slicing on a CUDA device against slicing on the CPU.
#include <gtest/gtest.h>

#include <map>

#include "dynslice/slice/slice.h"
#include "test_device.h"
#include "tiny_model.h"

namespace dynslice {
namespace {

using testing::largest_difference;
using testing::logits_of;
using testing::MemoryCheckpoint;
using testing::random_windows;
using testing::tiny_model;

SlicePlan plan_of_widths(const ModelConfig& config, const std::vector<int64_t>& dims, int64_t head_width) {
  SlicePlan plan;
  plan.hidden_size = config.hidden_size;
  plan.dims = dims;
  for (const int64_t dim : dims)
    plan.ratios.push_back(1 - static_cast<double>(dim) / static_cast<double>(config.hidden_size));
  plan.head_width = head_width;
  return plan;
}

struct Sliced {
  MemoryCheckpoint model;
  double held_out_loss = 0;
};

Sliced slice(const MemoryCheckpoint& model, const SlicePlan& plan, const TokenWindows& windows,
             const TokenWindows& held_out, const ComputeOptions& options) {
  Sliced sliced{MemoryCheckpoint(sliced_config(model.config(), plan))};
  const LayerWalk walk(model, options, windows.length, no_progress());
  std::map<std::string, std::vector<at::Tensor>> blocks;
  const TensorSink sink{
      [&](const std::string& name, const at::Tensor& values) { sliced.model.put(name, values); },
      [&](const std::string& name, int64_t, const at::Tensor& rows) { blocks[name].push_back(rows.clone()); }};
  sliced.held_out_loss = *slice_model(walk, plan, windows, sink, &held_out).held_out_loss;
  for (const auto& [name, rows] : blocks) sliced.model.put(name, at::cat(rows));
  return sliced;
}

class CudaSlice : public testing::OnDevice {
 protected:
  TokenWindows windows_ = random_windows(9, 16, 61), held_out_ = random_windows(3, 16, 61, 11);
  ComputeOptions options_{.device = device_, .chunk_tokens = 64};
};

TEST_F(CudaSlice, GivesTheCpusModel) {
  for (const bool tied : {false, true}) {
    const MemoryCheckpoint model = tiny_model({.tied = tied, .all_biases = true});
    // Wider, narrower and equal from layer to layer, and a head of its own.
    for (const auto& [dims, head] : std::vector<std::pair<std::vector<int64_t>, int64_t>>{
             {{24, 16, 28}, 32}, {{24, 24, 24}, 32}, {{16, 28, 20}, 20}, {{24, 32, 16}, 32}}) {
      const SlicePlan plan = plan_of_widths(model.config(), dims, head);
      const Sliced expected = slice(model, plan, windows_, held_out_, {.chunk_tokens = 64});
      const Sliced found = slice(model, plan, windows_, held_out_, options_);
      // The bases may differ, what they span may not: principal directions lose about three digits of the fp32 streams.
      EXPECT_NEAR(found.held_out_loss, expected.held_out_loss, 1e-3);
      EXPECT_LT(largest_difference(logits_of(found.model, windows_), logits_of(expected.model, windows_)), 1e-2);
    }
  }
}

TEST_F(CudaSlice, GivesTheSameBitsTwice) {
  const MemoryCheckpoint model = tiny_model();
  const SlicePlan plan = plan_of_widths(model.config(), {24, 16, 28}, 32);
  options_.dtype = at::kBFloat16;
  const Sliced first = slice(model, plan, windows_, held_out_, options_);
  const Sliced second = slice(model, plan, windows_, held_out_, options_);
  for (const TensorInfo& tensor : first.model.tensors()) {
    EXPECT_TRUE(at::equal(first.model.load(tensor.name, tensor.shape, at::kFloat),
                          second.model.load(tensor.name, tensor.shape, at::kFloat)))
        << tensor.name;
  }
}

}  // namespace
}  // namespace dynslice
