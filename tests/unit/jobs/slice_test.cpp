#include "dynslice/jobs/slice.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <variant>

#include "dynslice/checkpoint/open_checkpoint.h"
#include "dynslice/jobs/plan.h"
#include "dynslice/model/checkpoint.h"
#include "dynslice/support/error.h"
#include "unit/jobs/job_checks.h"
#include "unit/jobs/model_folder.h"
#include "unit/support/error_matchers.h"

namespace dynslice {
namespace {

using testing::content_of;
using testing::expect_earlier_result;
using testing::expect_error;
using testing::expect_record_in_json;
using testing::expect_sizes_on_disk;
using testing::ModelFolder;
using ::testing::UnorderedElementsAre;

SliceRequest slice_of(const ModelFolder& folder) {
  SliceRequest request;
  request.common = folder.common("slice");
  request.calibration = folder.text();
  request.average = 0.25;
  request.given_allocator = Allocator::kConstant;
  request.output = folder.in("sliced");
  return request;
}

SliceJobResult slice(const SliceRequest& request) { return std::get<SliceJobResult>(run(request, no_progress())); }

struct SliceWay {
  const char* name;
  WidthMethod method;
  BasisScope basis;
  Allocator allocator;
};

class EveryWayToSlice : public ::testing::TestWithParam<SliceWay> {};

TEST_P(EveryWayToSlice, SaysTheSizesThatTheWrittenCheckpointHas) {
  const ModelFolder folder;
  SliceRequest request = slice_of(folder);
  request.method = GetParam().method;
  request.basis = GetParam().basis;
  request.given_allocator = GetParam().allocator;
  const SliceJobResult result = slice(request);
  EXPECT_EQ(result.output, folder / "sliced");
  expect_sizes_on_disk(result.sizes, folder / "model", result.output);
  EXPECT_EQ(result.plan.method, GetParam().method);
  EXPECT_EQ(result.plan.dims.size(), 3U);
  EXPECT_EQ(result.calibration.windows, 8);
  EXPECT_EQ(result.calibration.length, 32);
}

INSTANTIATE_TEST_SUITE_P(
    SliceJob, EveryWayToSlice,
    ::testing::Values(SliceWay{"Block", WidthMethod::kSlice, BasisScope::kBlock, Allocator::kConstant},
                      SliceWay{"ByScores", WidthMethod::kSlice, BasisScope::kBlock, Allocator::kLr},
                      SliceWay{"Layer", WidthMethod::kSlice, BasisScope::kLayer, Allocator::kConstant},
                      SliceWay{"Global", WidthMethod::kSlice, BasisScope::kGlobal, Allocator::kConstant},
                      SliceWay{"Modular", WidthMethod::kModular, BasisScope::kBlock, Allocator::kConstant},
                      SliceWay{"ModularByLoss", WidthMethod::kModular, BasisScope::kBlock, Allocator::kLoss}),
    [](const auto& instance) { return std::string(instance.param.name); });

TEST(SliceJob, WritesNothingInADryRun) {
  const ModelFolder folder;
  SliceRequest request = slice_of(folder);
  request.common.dry_run = true;
  const auto dry_run = std::get<DryRun>(run(request, no_progress()));
  EXPECT_EQ(dry_run.job, "slice");
  EXPECT_GT(dry_run.plan.estimate.output_bytes, 0U);
  EXPECT_THAT(folder.names(), UnorderedElementsAre("model", "text.txt"));
}

TEST(SliceJob, LeavesNothingBesideItsFolder) {
  const ModelFolder folder;
  slice(slice_of(folder));
  EXPECT_THAT(folder.names(), UnorderedElementsAre("model", "text.txt", "sliced"));
}

TEST(SliceJob, GivesTheRecordThatItWrites) {
  const ModelFolder folder;
  const SliceJobResult result = slice(slice_of(folder));
  EXPECT_EQ(content_of(result.output / "dynslice.json"), to_text(result.record));
  const OrderedJson json = to_json(result);
  EXPECT_EQ(json.at("parameters").at("after"), result.sizes.after.parameters);
  expect_record_in_json(result, json);
}

TEST(SliceJob, FindsWithResumeThatAnEarlierRunHadFinished) {
  const ModelFolder folder;
  const SliceRequest request = slice_of(folder);
  expect_earlier_result(slice(request), request);
}

TEST(SliceJob, RefusesAFolderThatIsThereUnlessItMayReplaceIt) {
  const ModelFolder folder;
  SliceRequest request = slice_of(folder);
  slice(request);
  expect_error(ErrorKind::kUsage, {"sliced: exists", "--force"}, [&] { run(request, no_progress()); });
  request.average = 0.5;
  request.common.force = true;
  const SliceJobResult replaced = slice(request);
  EXPECT_EQ(replaced.sizes.bytes_after, stored_bytes(*open_checkpoint(folder / "sliced")));
}

TEST(SliceJob, RefusesToReplaceTheModelThatItReads) {
  const ModelFolder folder;
  SliceRequest request = slice_of(folder);
  request.output = folder.in("model");
  request.common.force = true;
  expect_error(ErrorKind::kUsage, {"holds the model that is read"}, [&] { run(request, no_progress()); });
}

TEST(SliceJob, SlicesAsAPlanSaysThatWasMadeBefore) {
  const ModelFolder folder;
  PlanRequest planning;
  static_cast<PlanningRequest&>(planning) = slice_of(folder);
  planning.given_allocator = Allocator::kLr;
  planning.output = folder.in("plan.json");
  const auto planned = std::get<PlanResult>(run(planning, no_progress()));
  SliceRequest request = slice_of(folder);
  request.average.reset();
  request.plan = planning.output;
  const SliceJobResult result = slice(request);
  EXPECT_EQ(result.plan.dims, planned.plan.dims);
  EXPECT_EQ(result.sizes.after.parameters, planned.sizes.after.parameters);
  EXPECT_FALSE(result.scores.has_value());
}

}  // namespace
}  // namespace dynslice
