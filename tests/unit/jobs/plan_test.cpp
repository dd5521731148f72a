#include "dynslice/jobs/plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <variant>

#include "dynslice/checkpoint/open_checkpoint.h"
#include "dynslice/model/checkpoint.h"
#include "dynslice/support/error.h"
#include "unit/jobs/model_folder.h"
#include "unit/support/error_matchers.h"

namespace dynslice {
namespace {

using testing::content_of;
using testing::expect_error;
using testing::ModelFolder;
using ::testing::UnorderedElementsAre;

PlanRequest request_of(const ModelFolder& folder) {
  PlanRequest request;
  request.common = folder.common("plan");
  request.calibration = folder.text();
  request.average = 0.25;
  request.given_allocator = Allocator::kLr;
  request.output = folder.in("plan.json");
  return request;
}

PlanResult plan(const PlanRequest& request) { return std::get<PlanResult>(run(request, no_progress())); }

TEST(PlanJob, WritesThePlanThatItGives) {
  const ModelFolder folder;
  const PlanResult result = plan(request_of(folder));
  EXPECT_EQ(content_of(folder / "plan.json"), to_text(to_json(result.plan)));
  EXPECT_EQ(read_plan(folder / "plan.json", open_checkpoint(folder / "model")->config()).dims, result.plan.dims);
  EXPECT_LT(result.sizes.after.multiply_adds_per_token, result.sizes.before.multiply_adds_per_token);
  ASSERT_TRUE(result.scores.has_value());
  EXPECT_EQ(result.scores->values.size(), result.plan.dims.size());
  EXPECT_THAT(folder.names(), UnorderedElementsAre("model", "text.txt", "plan.json"));
}

TEST(PlanJob, WritesNothingInADryRun) {
  const ModelFolder folder;
  PlanRequest request = request_of(folder);
  request.common.dry_run = true;
  EXPECT_EQ(std::get<DryRun>(run(request, no_progress())).job, "plan");
  EXPECT_THAT(folder.names(), UnorderedElementsAre("model", "text.txt"));
}

TEST(PlanJob, ReadsNoTextWhereAllLayersAreAlike) {
  const ModelFolder folder;
  PlanRequest request = request_of(folder);
  request.given_allocator = Allocator::kConstant;
  request.calibration.spec = folder.in("no_such_text.txt");
  const PlanResult result = plan(request);
  EXPECT_FALSE(result.scores.has_value());
  EXPECT_FALSE(result.plan.provenance.contains("calibration"));
}

TEST(PlanJob, SaysWhatThePlanIsMadeFrom) {
  const ModelFolder folder;
  const PlanResult result = plan(request_of(folder));
  EXPECT_EQ(result.plan.provenance.at("calibration").at("windows"), 8);
  const OrderedJson json = to_json(result);
  for (const char* key : {"plan", "scores", "parameters", "bytes", "flops_per_token"})
    EXPECT_TRUE(json.contains(key)) << key;
}

TEST(PlanJob, RefusesAFileWithoutAFolderBeforeItOpensTheModel) {
  const ModelFolder folder;
  PlanRequest request = request_of(folder);
  request.common.model = folder.in("no_such_model");
  request.output = folder.in("no_such_folder/plan.json");
  expect_error(ErrorKind::kMissingData, {"its folder does not exist"}, [&] { run(request, no_progress()); });
}

}  // namespace
}  // namespace dynslice
