#include "dynslice/jobs/bench.h"

#include <gtest/gtest.h>

#include <variant>

#include "dynslice/support/error.h"
#include "unit/jobs/model_folder.h"
#include "unit/support/error_matchers.h"

namespace dynslice {
namespace {

using testing::expect_error;
using testing::ModelFolder;

BenchRequest bench_of(const ModelFolder& folder) {
  BenchRequest request;
  request.common = folder.common("bench");
  request.prompt_tokens = 8;
  request.decode_tokens = 4;
  request.repeats = 2;
  return request;
}

TEST(BenchJob, MeasuresAModelAlone) {
  const ModelFolder folder;
  const auto result = std::get<BenchResult>(run(bench_of(folder), no_progress()));
  ASSERT_EQ(result.models.size(), 1U);
  EXPECT_FALSE(result.against.has_value());
  EXPECT_TRUE(result.products.empty());
  EXPECT_EQ(result.models.front().speed.token_seconds.size(), 8U);
  EXPECT_GT(result.models.front().speed.decode_tokens_per_second, 0);
  const OrderedJson json = to_json(result);
  EXPECT_EQ(json.at("model"), folder.in("model"));
  EXPECT_FALSE(json.contains("models"));
  EXPECT_FALSE(json.contains("ratio"));
}

TEST(BenchJob, TellsSeveralModelsApartFromTheOneTheyAreComparedWith) {
  const ModelFolder folder;
  const ModelFolder other(8);
  const ModelFolder dense(9);
  BenchRequest request = bench_of(folder);
  request.others = {other.in("model")};
  request.against = dense.in("model");
  request.decode_tokens = 0;
  const auto result = std::get<BenchResult>(run(request, no_progress()));
  ASSERT_EQ(result.models.size(), 2U);
  EXPECT_EQ(result.models[0].path, folder.in("model"));
  EXPECT_EQ(result.models[1].path, other.in("model"));
  ASSERT_TRUE(result.against.has_value());
  EXPECT_EQ(result.against->path, dense.in("model"));
  const OrderedJson json = to_json(result);
  ASSERT_EQ(json.at("models").size(), 2U);
  EXPECT_GT(json.at("models").at(1).at("ratio").at("prefill"), 0);
  EXPECT_FALSE(json.at("models").at(1).contains("decode"));
  EXPECT_EQ(json.at("against").at("model"), dense.in("model"));
}

TEST(BenchJob, MeasuresNothingInADryRun) {
  const ModelFolder folder;
  BenchRequest request = bench_of(folder);
  request.common.dry_run = true;
  EXPECT_EQ(std::get<DryRun>(run(request, no_progress())).job, "bench");
}

TEST(BenchJob, SaysThatItIsTheNumberOfModelsThatIsTooMuch) {
  const ModelFolder folder;
  BenchRequest request = bench_of(folder);
  request.against = folder.in("model");
  request.common.max_memory = "1KB";
  expect_error(ErrorKind::kOutOfResources, {"the 2 models are in memory together"},
               [&] { run(request, no_progress()); });
}

}  // namespace
}  // namespace dynslice
