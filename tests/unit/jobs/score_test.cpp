#include "dynslice/jobs/score.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <variant>
#include <vector>

#include "aten.h"
#include "dynslice/checkpoint/open_checkpoint.h"
#include "dynslice/score/score.h"
#include "dynslice/support/error.h"
#include "unit/jobs/job_checks.h"
#include "unit/jobs/model_folder.h"
#include "unit/support/error_matchers.h"

namespace dynslice {
namespace {

using testing::content_of;
using ::testing::DoubleEq;
using ::testing::DoubleNear;
using ::testing::ElementsAre;
using testing::expect_dry_run;
using testing::expect_error;
using ::testing::IsEmpty;
using testing::ModelFolder;
using ::testing::Pointwise;
using testing::RestoresThreads;

ScoreRequest score_of(const ModelFolder& folder) {
  ScoreRequest request;
  request.common = folder.common("score");
  request.calibration = folder.text();
  request.output = folder.in("scores.json");
  return request;
}

ScoreResult score(const ScoreRequest& request) { return std::get<ScoreResult>(run(request, no_progress())); }

class EveryMetric : public ::testing::TestWithParam<const char*> {};

TEST_P(EveryMetric, HasTheScoresOfTheLibraryOnTheSameTokens) {
  const ModelFolder folder;
  ScoreRequest request = score_of(folder);
  request.metric = GetParam();
  const ScoreResult result = score(request);
  const auto model = open_checkpoint(folder / "model");
  const LayerWalk walk(*model, {}, folder.windows().length, no_progress());
  const LayerScores expected = score_layers(walk, folder.windows(), {parse_metric(GetParam())});
  EXPECT_THAT(result.scores.values, Pointwise(DoubleNear(1e-9), expected.values));
  EXPECT_EQ(result.scores.metric, GetParam());
  EXPECT_EQ(result.metric.name(), GetParam());
  EXPECT_EQ(result.scores.tokens, expected.tokens);
}

INSTANTIATE_TEST_SUITE_P(ScoreJob, EveryMetric,
                         ::testing::Values("lr", "bi", "lim", "angular", "window:2", "cka", "zd"),
                         [](const auto& instance) {
                           std::string name = instance.param;
                           std::erase(name, ':');
                           return name;
                         });

TEST(ScoreJob, MeansTheCosineOfWhatEntersALayerAndWhatLeavesIt) {
  const ModelFolder folder;
  const ScoreResult result = score(score_of(folder));
  const auto model = open_checkpoint(folder / "model");
  const LayerWalk walk(*model, {}, folder.windows().length, no_progress());
  const std::vector<at::Tensor> streams = testing::all_streams(walk, folder.windows());
  ASSERT_EQ(result.scores.values.size(), streams.size() - 1);
  for (size_t layer = 0; layer + 1 < streams.size(); ++layer) {
    const double cosine = at::cosine_similarity(streams[layer], streams[layer + 1]).mean().item<double>();
    EXPECT_NEAR(result.scores.values[layer], cosine, 1e-5) << layer;  // the job's cosines are fp32
  }
  EXPECT_EQ(result.scores.tokens, folder.windows().tokens());
}

TEST(ScoreJob, WritesTheScoresThatItGivesAndNothingElse) {
  const ModelFolder folder;
  const ScoreResult result = score(score_of(folder));
  EXPECT_EQ(content_of(folder / "scores.json"), to_text(to_json(result.scores)));
  EXPECT_THAT(read_scores(folder / "scores.json").values, Pointwise(DoubleEq(), result.scores.values));
  EXPECT_THAT(folder.names(), ElementsAre("model", "scores.json", "text.txt"));
  EXPECT_THAT(folder.kept(), IsEmpty());
}

TEST(ScoreJob, PrintsTheScoresAndWhatTheyTook) {
  const ModelFolder folder;
  const ScoreResult result = score(score_of(folder));
  OrderedJson json = to_json(result);
  EXPECT_EQ(json.at("wall_seconds"), result.seconds);
  EXPECT_EQ(json.at("peak_rss_bytes"), result.peak.rss);
  for (const char* key : {"wall_seconds", "peak_rss_bytes"}) json.erase(key);
  EXPECT_EQ(to_text(json), to_text(to_json(result.scores)));
  EXPECT_EQ(json.at("provenance").at("calibration").at("windows"), 8);
  EXPECT_EQ(json.at("provenance").at("after_final_norm"), false);
}

TEST(ScoreJob, NeedsNoFileToWriteTo) {
  const ModelFolder folder;
  ScoreRequest request = score_of(folder);
  request.output.clear();
  EXPECT_EQ(score(request).scores.values.size(), 3U);
  EXPECT_THAT(folder.names(), ElementsAre("model", "text.txt"));
  EXPECT_THAT(folder.kept(), IsEmpty());
}

TEST(ScoreJob, WritesNothingInADryRun) {
  const ModelFolder folder;
  expect_dry_run(folder, score_of(folder), "score");
}

TEST(ScoreJob, ReadsNoTextForAMetricOfWeights) {
  const ModelFolder folder;
  ScoreRequest request = score_of(folder);
  request.metric = "zd";
  request.calibration.spec = folder.in("no_such_text.txt");
  const ScoreResult result = score(request);
  EXPECT_EQ(result.scores.tokens, 0);
  EXPECT_FALSE(result.scores.provenance.contains("calibration"));
}

TEST(ScoreJob, ReadsTheLastOutputBehindTheFinalNormAsThePaperDoes) {
  const ModelFolder folder;
  ScoreRequest request = score_of(folder);
  const std::vector<double> plain = score(request).scores.values;
  request.preset = "paper";
  const ScoreResult paper = score(request);
  EXPECT_EQ(paper.scores.provenance.at("after_final_norm"), true);
  EXPECT_EQ(paper.scores.values[0], plain[0]);
  EXPECT_EQ(paper.scores.values[1], plain[1]);
  EXPECT_NE(paper.scores.values[2], plain[2]);
}

TEST(ScoreJob, DrawsTheMatrixOfCka) {
  const ModelFolder folder;
  ScoreRequest request = score_of(folder);
  request.metric = "cka";
  request.matrix = folder.in("cka.svg");
  const ScoreResult result = score(request);
  EXPECT_EQ(result.scores.matrix.size(), 3U);
  EXPECT_THAT(content_of(folder / "cka.svg"), ::testing::StartsWith("<svg"));
}

TEST(ScoreJob, GivesTheSameScoresWithAnyNumberOfThreads) {
  const RestoresThreads restores;
  const ModelFolder folder;
  ScoreRequest request = score_of(folder);
  request.common.threads = 1;
  const std::vector<double> one = score(request).scores.values;
  request.common.threads = 2;
  EXPECT_THAT(score(request).scores.values, Pointwise(DoubleNear(1e-6), one));  // products add in another order
}

TEST(ScoreJob, RefusesAMatrixOfAMetricThatHasNone) {
  const ModelFolder folder;
  ScoreRequest request = score_of(folder);
  request.matrix = folder.in("lr.svg");
  expect_error(ErrorKind::kUsage, {"--matrix", "lr.svg", "cka", "not to lr"}, [&] { score(request); });
}

TEST(ScoreJob, NamesTheMetricsThatThereAre) {
  const ModelFolder folder;
  ScoreRequest request = score_of(folder);
  request.metric = "no_such_metric";
  expect_error(ErrorKind::kUsage, {"no_such_metric", "lr", "cka", "zd"}, [&] { score(request); });
}

TEST(ScoreJob, RefusesAFileWithoutAFolderBeforeItOpensTheModel) {
  const ModelFolder folder;
  ScoreRequest request = score_of(folder);
  request.common.model = folder.in("no_such_model");
  request.output = folder.in("no_such_folder/scores.json");
  expect_error(ErrorKind::kMissingData, {"scores.json", "its folder does not exist"}, [&] { score(request); });
}

TEST(ScoreJob, RefusesWindowsOfMoreLayersThanThereAre) {
  const ModelFolder folder;
  ScoreRequest request = score_of(folder);
  request.metric = "window:4";
  expect_error(ErrorKind::kUsage, {"4", "3"}, [&] { score(request); });
}

TEST(ScoreJob, SaysHowMuchTextThereIsWhenItIsTooLittle) {
  const ModelFolder folder;
  ScoreRequest request = score_of(folder);
  request.calibration.samples = 33;  // the text's 1024 tokens are 32 windows
  expect_error(ErrorKind::kUsage, {"33", "32"}, [&] { score(request); });
}

}  // namespace
}  // namespace dynslice
