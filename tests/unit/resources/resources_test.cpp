#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "dynslice/evaluate/estimate.h"
#include "dynslice/resources/estimate.h"
#include "dynslice/score/estimate.h"
#include "dynslice/slice/estimate.h"
#include "dynslice/walk/memory_plan.h"
#include "tiny_model.h"
#include "unit/support/error_matchers.h"
#include "unit/support/temporary_folder.h"

namespace dynslice {
namespace {

using testing::expect_error;
using testing::MemoryCheckpoint;
using testing::tiny_model;

uint64_t part(const ResourceEstimate& estimate, const std::string& name) {
  for (const MemoryPart& one : estimate.parts) {
    if (one.name == name) return one.bytes;
  }
  return 0;
}

// 100 bytes of program, 10 a token of a chunk, and 1000 of streams.
ResourceEstimate simple(const ComputeOptions& compute, int64_t stream_bytes) {
  ResourceEstimate estimate;
  const auto chunk = static_cast<uint64_t>(10 * std::max<int64_t>(4, compute.chunk_tokens));  // whole windows of 4
  estimate.parts = {{"program", 100}, {"chunk_buffers", chunk}};
  estimate.stream_bytes = stream_bytes > 0 ? std::min<uint64_t>(1000, static_cast<uint64_t>(stream_bytes)) : 1000;
  return estimate;
}

class Planning : public ::testing::Test {
 protected:
  ResourcePlan plan(std::optional<uint64_t> memory, std::optional<uint64_t> activations = {}, int64_t turn = 0) const {
    return plan_resources(simple, {.chunk_tokens = 64}, {memory, activations, folder_.path()}, turn);
  }
  testing::TemporaryFolder folder_;
};

TEST_F(Planning, ChangesNothingWhenThereIsRoom) {
  const ResourcePlan roomy = plan(10'000);
  EXPECT_EQ(roomy.compute.chunk_tokens, 64);
  EXPECT_EQ(roomy.compute.activations, nullptr);
  EXPECT_EQ(roomy.memory_bytes(), 1740U);
  EXPECT_EQ(plan(std::nullopt).compute.activations, nullptr);  // a tiny job fits every machine
}

TEST_F(Planning, SpillsWhatDoesNotFit) {
  const ResourcePlan tight = plan(1240);
  EXPECT_EQ(tight.compute.chunk_tokens, 64);
  EXPECT_EQ(tight.activation_bytes, 500U);
  EXPECT_EQ(tight.scratch_bytes, 500U);
  EXPECT_NE(tight.compute.activations, nullptr);
}

TEST_F(Planning, TakesSmallerChunksWhenSpillingIsNotEnough) {
  const ResourcePlan tight = plan(500);
  EXPECT_EQ(tight.compute.chunk_tokens, 32);
  EXPECT_LE(tight.memory_bytes(), 500U);
}

TEST_F(Planning, WalksInTurnsBeforeItSpills) {
  const ResourcePlan tight = plan(1240, {}, 1000);
  EXPECT_EQ(tight.stream_bytes, 500);
  EXPECT_EQ(tight.scratch_bytes, 0U);
  EXPECT_EQ(tight.compute.activations, nullptr);
}

TEST_F(Planning, SpillsBeyondTheActivationMemoryThatWasGiven) {
  const ResourcePlan spilled = plan(10'000, 300);
  EXPECT_EQ(spilled.activation_bytes, 300U);
  EXPECT_EQ(spilled.scratch_bytes, 700U);
}

TEST_F(Planning, RefusesWhatCannotFitAndSaysWhatToTurnDown) {
  expect_error(ErrorKind::kOutOfResources, {"--max-memory", "program", "--seqlen", "--threads"}, [&] { plan(120); });
  expect_error(ErrorKind::kOutOfResources, {"--activation-memory"}, [&] { plan(600, 700); });
}

TEST_F(Planning, RefusesAScratchFileThatTheDiskHasNoRoomFor) {
  const auto huge = [](const ComputeOptions&, int64_t) {
    ResourceEstimate estimate;
    estimate.stream_bytes = uint64_t{1} << 62;
    return estimate;
  };
  expect_error(ErrorKind::kOutOfResources, {folder_.path().string(), "--samples", "--scratch-dir"},
               [&] { plan_resources(huge, {}, {1000, {}, folder_.path()}); });
}

TEST(Estimates, DoNotGrowWithTheNumberOfLayers) {
  const MemoryCheckpoint few = tiny_model({.layers = 2}), many = tiny_model({.layers = 9});
  const TextAmount text{8, 16};
  for (const char* name : {"layer_weights", "chunk_buffers", "moments_and_chunks"}) {
    EXPECT_EQ(part(estimate_slice(few, {}, {text, {}}), name), part(estimate_slice(many, {}, {text, {}}), name));
  }
  EXPECT_NEAR(estimate_score(many, {}, text).work.forward_flops / estimate_score(few, {}, text).work.forward_flops, 4.5,
              1e-9);
}

TEST(Estimates, CountTheStreams) {
  const MemoryCheckpoint model = tiny_model();
  const uint64_t stream = 8 * 16 * 32 * 4;
  EXPECT_EQ(estimate_score(model, {}, {8, 16}).stream_bytes, stream);
  EXPECT_EQ(estimate_score(model, {}, {8, 16}, 4).stream_bytes, 4 * stream);
  EXPECT_EQ(estimate_slice(model, {}, {{8, 16}, {4, 16}}).stream_bytes, stream * 3 / 2);
  EXPECT_EQ(estimate_slice(model, {}, {{8, 16}, {4, 16}, {}, /*refits=*/true}).stream_bytes, stream * 5 / 2);
  EXPECT_EQ(estimate_perplexity(model, {}, {8, 16}, static_cast<int64_t>(stream) / 2).stream_bytes, stream / 2);
  const MemoryCheckpoint wide = tiny_model({.hidden_size = 64});
  EXPECT_EQ(estimate_divergence(model, wide, {}, {8, 16}, 1 << 30).stream_bytes, 3 * stream);
  EXPECT_EQ(estimate_divergence(model, wide, {}, {8, 16}, static_cast<int64_t>(stream)).stream_bytes, 3 * stream / 4);
}

TEST(Estimates, OfTwoStepsTakeTheLargerMemoryAndAllOfTheWork) {
  const MemoryCheckpoint model = tiny_model();
  const ResourceEstimate score = estimate_score(model, {}, {64, 16}),
                         slice = estimate_slice(model, {}, {{2, 16}, {}, {}, false, nullptr, 7});
  const ResourceEstimate both = score + slice;
  EXPECT_EQ(both.work.forward_flops, score.work.forward_flops + slice.work.forward_flops);
  EXPECT_EQ(both.work.eigen_cubes, slice.work.eigen_cubes);
  EXPECT_EQ(both.output_bytes, 7U);
  EXPECT_GE(both.fixed_bytes() + both.stream_bytes, slice.fixed_bytes() + slice.stream_bytes);
}

TEST(Rates, AreMeasuredAndGiveATime) {
  const MemoryCheckpoint model = tiny_model();
  const MachineRates rates = measure_rates(model.config(), {});
  for (const double rate : {rates.forward_flops, rates.rotation_flops, rates.moment_flops, rates.eigen_cubes}) {
    EXPECT_GT(rate, 1e3);
  }
  Work work;
  work.forward_flops = 3 * rates.forward_flops;
  EXPECT_NEAR(estimate_seconds(work, rates), 3, 1e-6);
}

}  // namespace
}  // namespace dynslice
