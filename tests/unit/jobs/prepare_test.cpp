#include "dynslice/jobs/prepare.h"

#include <gtest/gtest.h>

#include <string>
#include <variant>

#include "dynslice/checkpoint/open_checkpoint.h"
#include "dynslice/support/error.h"
#include "unit/jobs/model_folder.h"
#include "unit/support/error_matchers.h"

namespace dynslice {
namespace {

using testing::expect_error;
using testing::ModelFolder;

// A job that takes two parts of memory, and writes.
ResourceEstimate some_estimate() {
  ResourceEstimate estimate;
  estimate.parts = {{"weights", 3'000'000}, {"activations", 1'000'000}};
  estimate.output_bytes = 5'000'000;
  estimate.work.forward_flops = 1e9;
  return estimate;
}

std::variant<ResourcePlan, DryRun> prepare_some(const ModelFolder& folder, const CommonOptions& common) {
  const Job job{"test", [](const ComputeOptions&, int64_t) { return some_estimate(); }, 0, folder / "out"};
  return prepare(common, *open_checkpoint(folder / "model"), {}, job);
}

TEST(Prepare, TellsInADryRunWhatTheJobNeeds) {
  const ModelFolder folder;
  CommonOptions common = folder.common("test");
  common.dry_run = true;
  const auto dry_run = std::get<DryRun>(prepare_some(folder, common));
  EXPECT_EQ(dry_run.job, "test");
  EXPECT_GT(dry_run.rates.forward_flops, 0);
  EXPECT_GT(dry_run.seconds, 0);
  EXPECT_GT(dry_run.threads, 0);
  const OrderedJson json = to_json(dry_run);
  EXPECT_EQ(json.at("dry_run"), "test");
  EXPECT_EQ(json.at("memory").at("bytes"), 4'000'000);
  EXPECT_EQ(json.at("memory").at("parts").at("weights"), 3'000'000);
  EXPECT_EQ(json.at("disk").at("output_bytes"), 5'000'000);
  EXPECT_EQ(json.at("disk").at("output_room_bytes"), *dry_run.output_room);
  EXPECT_EQ(json.at("time").at("seconds"), dry_run.seconds);
  EXPECT_EQ(json.at("time").at("work").at("forward_flops"), 1e9);
  EXPECT_EQ(json.at("time").at("rates").at("forward_flops"), dry_run.rates.forward_flops);
  EXPECT_EQ(json.at("threads"), dry_run.threads);
}

TEST(Prepare, MeasuresNothingInARehearsal) {
  const ModelFolder folder;
  CommonOptions common = folder.common("test");
  common.dry_run = common.rehearsal = true;
  const auto rehearsal = std::get<DryRun>(prepare_some(folder, common));
  EXPECT_EQ(rehearsal.rates.forward_flops, 0);
  EXPECT_EQ(rehearsal.plan.memory_bytes(), 4'000'000U);
}

TEST(Prepare, GivesThePlanToRunBy) {
  const ModelFolder folder;
  CommonOptions common = folder.common("test");
  common.max_memory = "4MB";
  const auto plan = std::get<ResourcePlan>(prepare_some(folder, common));
  EXPECT_EQ(plan.memory_bytes(), 4'000'000U);
  EXPECT_EQ(plan.memory_limit, 4'000'000U);
}

TEST(Prepare, RefusesAJobThatDoesNotFit) {
  const ModelFolder folder;
  CommonOptions common = folder.common("test");
  common.max_memory = "3MB";
  expect_error(ErrorKind::kOutOfResources, {"about 4 MB", "--max-memory 3 MB"}, [&] { prepare_some(folder, common); });
  common.dry_run = true;
  expect_error(ErrorKind::kOutOfResources, {"about 4 MB", "--max-memory 3 MB"}, [&] { prepare_some(folder, common); });
}

TEST(Prepare, RefusesASizeThatIsNone) {
  const ModelFolder folder;
  CommonOptions common = folder.common("test");
  common.max_memory = "much";
  expect_error(ErrorKind::kUsage, {"--max-memory", "much"}, [&] { prepare_some(folder, common); });
}

}  // namespace
}  // namespace dynslice
