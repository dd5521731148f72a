#include "dynslice/jobs/checkpoint_output.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "dynslice/checkpoint/open_checkpoint.h"
#include "dynslice/support/error.h"
#include "unit/jobs/model_folder.h"
#include "unit/support/error_matchers.h"

namespace dynslice {
namespace {

using ::testing::ElementsAre;
using testing::expect_error;
using testing::ModelFolder;
using testing::write_bytes;

// What a command leaves that took a model of `before` parameters to `after`.
OrderedJson record_of(const std::string& method, int64_t before, int64_t after) {
  return {{"method", method},
          {"run", {{"model", method + " source"}, {"command_line", {"dynslice", method}}}},
          {"parameters", {{"before", before}, {"after", after}}}};
}

OrderedJson record_behind(OrderedJson record, OrderedJson earlier) {
  record["source_record"] = std::move(earlier);
  return whole_record(std::move(record));
}

std::vector<std::string> methods_in(const OrderedJson& steps) {
  std::vector<std::string> methods;
  for (const OrderedJson& step : steps) methods.push_back(step.at("method").get<std::string>());
  return methods;
}

TEST(WholeRecord, IsTheRecordItselfOfAModelThatDynsliceDidNotMake) {
  const OrderedJson record = record_of("slice", 100, 75);
  EXPECT_EQ(to_text(whole_record(record)), to_text(record));
}

TEST(WholeRecord, SumsUpAllStepsSinceTheOriginal) {
  OrderedJson record = whole_record(record_of("slice", 100, 75));
  record = record_behind(record_of("depth drop", 75, 60), record);
  record = record_behind(record_of("quantize rtn", 60, 60), record);
  EXPECT_THAT(methods_in(record.at("steps")), ElementsAre("slice", "depth drop", "quantize rtn"));
  EXPECT_EQ(record.at("since_original").at("model"), "slice source");
  EXPECT_EQ(record.at("since_original").at("parameters").at("before"), 100);
  EXPECT_EQ(record.at("since_original").at("parameters").at("after"), 60);
  EXPECT_EQ(record.at("parameters").at("before"), 60);
}

TEST(WholeRecord, SaysNothingTwice) {
  OrderedJson record = record_behind(record_of("depth drop", 75, 60), whole_record(record_of("slice", 100, 75)));
  record = record_behind(record_of("heal lora", 60, 60), record);
  EXPECT_EQ(std::prev(record.end()).key(), "source_record");  // which is long
  EXPECT_FALSE(record.at("source_record").contains("steps"));
  EXPECT_FALSE(record.at("source_record").contains("since_original"));
  EXPECT_THAT(methods_in(steps_of(record)), ElementsAre("slice", "depth drop", "heal lora"));
}

TEST(ChangeOf, TakesSizesThatNotEveryStepTellsOf) {
  OrderedJson dropped = record_of("depth drop", 75, 60);
  dropped["layers"] = {{"before", 8}, {"after", 6}};
  const OrderedJson change =
      change_of(OrderedJson::array({record_of("slice", 100, 75), dropped, record_of("heal lora", 60, 60)}));
  EXPECT_EQ(change.at("layers").at("before"), 8);
  EXPECT_EQ(change.at("layers").at("after"), 6);
  EXPECT_EQ(change.at("parameters").at("before"), 100);
  EXPECT_EQ(change.at("parameters").at("after"), 60);
}

TEST(RecordOfJob, KnowsTheSameJobByItsCommandLineWithoutWhatIsPrinted) {
  OrderedJson run = {{"command_line", {"dynslice", "slice", "-o", "out"}}, {"threads", 2}};
  const OrderedJson record = {{"run", run}};
  run["command_line"] = {"dynslice", "slice", "--json", "-q", "-o", "out", "--force"};
  EXPECT_TRUE(record_of_job(to_text(record), "dynslice.json", run).has_value());
  run["command_line"] = {"dynslice", "slice", "-o", "other"};
  EXPECT_FALSE(record_of_job(to_text(record), "dynslice.json", run).has_value());
  run["command_line"] = {"dynslice", "slice", "-o", "out"};
  run["threads"] = 1;
  EXPECT_FALSE(record_of_job(to_text(record), "dynslice.json", run).has_value());
  EXPECT_FALSE(record_of_job("{}", "dynslice.json", run).has_value());
}

TEST(FinishedEarlier, FindsNothingWhereNoRunWrote) {
  const ModelFolder folder;
  EXPECT_FALSE(finished_earlier(folder / "no_such_folder", OrderedJson::object()).has_value());
  EXPECT_FALSE(finished_earlier(folder / "model", OrderedJson::object()).has_value());
}

TEST(ModelName, IsThatOfTheFolderOrTheFileOrTheHub) {
  const ModelFolder folder;
  const auto model = open_checkpoint(folder / "model");
  CommonOptions common = folder.common("slice");
  EXPECT_EQ(model_name(common, *model), "model");
  EXPECT_EQ(model_name(common, *open_checkpoint(folder.in("model") + "/")), "model");
  common.model = "some-group/some-model";
  EXPECT_EQ(model_name(common, *model), "some-model");
}

TEST(CheckpointFolder, IsNamedAfterTheModelUnlessItIsNamed) {
  const ModelFolder folder;
  const auto model = open_checkpoint(folder / "model");
  const CommonOptions common = folder.common("slice");
  EXPECT_EQ(checkpoint_folder("", common, *model, "sliced"), "model-sliced");
  EXPECT_EQ(checkpoint_folder(folder.in("out"), common, *model, "sliced"), folder / "out");
}

TEST(CheckpointFolder, MustNotHoldTheModelAnywhereBelow) {
  const ModelFolder folder;
  const auto model = open_checkpoint(folder / "model");
  for (const std::filesystem::path& out : {folder / "model", folder / "model" / "..", folder / "model/"}) {
    expect_error(ErrorKind::kUsage, {"holds the model that is read"}, [&] { check_apart(out, *model); });
  }
  check_apart(folder / "model-sliced", *model);
  check_apart(folder / "model" / "sliced", *model);  // below it is no danger
}

TEST(DescribeCheckpoint, KeepsTheRecordOfASourceThatDynsliceMade) {
  const ModelFolder folder;
  write_bytes(folder / "model" / "dynslice.json", to_text(record_of("slice", 100, 75)));
  const auto model = open_checkpoint(folder / "model");
  const OrderedJson record = describe_checkpoint("heal lora", {{"model", "m"}}, *model, no_progress());
  EXPECT_EQ(record.at("method"), "heal lora");
  EXPECT_EQ(to_text(record.at("source_record")), to_text(record_of("slice", 100, 75)));
  EXPECT_TRUE(record.at("source").contains("model.safetensors"));
}

}  // namespace
}  // namespace dynslice
