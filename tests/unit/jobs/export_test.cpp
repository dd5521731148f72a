#include "dynslice/jobs/export.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <variant>

#include "dynslice/checkpoint/open_checkpoint.h"
#include "dynslice/model/checkpoint.h"
#include "dynslice/support/error.h"
#include "unit/jobs/model_folder.h"
#include "unit/support/error_matchers.h"

namespace dynslice {
namespace {

using testing::expect_error;
using testing::ModelFolder;
using ::testing::UnorderedElementsAre;

ExportRequest export_of(const ModelFolder& folder) {
  ExportRequest request;
  request.common = folder.common("export");
  request.gguf = true;
  request.output = folder.in("model.gguf");
  return request;
}

TEST(ExportJob, SaysWhatTheWrittenFileHolds) {
  const ModelFolder folder;
  const auto result = std::get<ExportResult>(run(export_of(folder), no_progress()));
  EXPECT_EQ(result.type, "f32");  // as the weights are
  EXPECT_EQ(result.output, folder / "model.gguf");
  EXPECT_EQ(result.file.bytes, std::filesystem::file_size(result.output));
  const auto written = open_checkpoint(result.output);
  EXPECT_EQ(result.parameters, count_cost(written->config()).parameters);
  EXPECT_EQ(result.file.tensors, static_cast<int64_t>(written->tensors().size()));
  uint64_t bytes = 0;
  for (const auto& [type, count] : result.file.bytes_by_type) bytes += count;
  EXPECT_EQ(bytes, stored_bytes(*written));
}

TEST(ExportJob, WritesNothingInADryRun) {
  const ModelFolder folder;
  ExportRequest request = export_of(folder);
  request.common.dry_run = true;
  const auto dry_run = std::get<DryRun>(run(request, no_progress()));
  EXPECT_EQ(dry_run.job, "export");
  EXPECT_GT(dry_run.plan.estimate.output_bytes, 0U);
  EXPECT_THAT(folder.names(), UnorderedElementsAre("model", "text.txt"));
}

TEST(ExportJob, RefusesAFileThatIsThereUnlessItMayReplaceIt) {
  const ModelFolder folder;
  ExportRequest request = export_of(folder);
  run(request, no_progress());
  expect_error(ErrorKind::kUsage, {"model.gguf"}, [&] { run(request, no_progress()); });
  request.common.force = true;
  request.type = "bf16";
  EXPECT_EQ(std::get<ExportResult>(run(request, no_progress())).type, "bf16");
}

TEST(ExportJob, NamesTheTypesThatThereAre) {
  const ModelFolder folder;
  ExportRequest request = export_of(folder);
  request.type = "q9_9";
  expect_error(ErrorKind::kUsage, {"--type", "q9_9", "q4_k"}, [&] { run(request, no_progress()); });
}

}  // namespace
}  // namespace dynslice
