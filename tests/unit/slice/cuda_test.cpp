// Slicing on a CUDA device against slicing on the CPU.
#include <gtest/gtest.h>

#include "dynslice/slice/slice.h"
#include "test_device.h"
#include "unit/slice/sliced_models.h"

namespace dynslice {
namespace {

using testing::collect_tensors;
using testing::largest_difference;
using testing::logits_of;
using testing::MemoryCheckpoint;
using testing::plan_of_widths;
using testing::random_windows;
using testing::tiny_model;

struct Sliced {
  MemoryCheckpoint model;
  double held_out_loss = 0;
};

Sliced slice(const MemoryCheckpoint& model, const SlicePlan& plan, const TokenWindows& windows,
             const TokenWindows& held_out, const ComputeOptions& options, RotationRefit refit = RotationRefit::kNone) {
  const LayerWalk walk(model, options, windows.length, no_progress());
  double loss = 0;
  MemoryCheckpoint sliced = collect_tensors(sliced_config(model.config(), plan), [&](const TensorSink& sink) {
    loss = *slice_model(walk, plan, windows, sink, &held_out, {}, {.refit = refit}).held_out_loss;
  });
  return {std::move(sliced), loss};
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
      for (const RotationRefit refit : {RotationRefit::kNone, RotationRefit::kAll}) {
        const Sliced expected = slice(model, plan, windows_, held_out_, {.chunk_tokens = 64}, refit);
        const Sliced found = slice(model, plan, windows_, held_out_, options_, refit);
        // The bases may differ, what they span may not: principal directions lose about three digits of the streams.
        EXPECT_NEAR(found.held_out_loss, expected.held_out_loss, 1e-3);
        EXPECT_LT(largest_difference(logits_of(found.model, windows_), logits_of(expected.model, windows_)), 1e-2);
      }
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
