#include "dynslice/jobs/compare.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <sstream>
#include <string>
#include <variant>
#include <vector>

#include "dynslice/checkpoint/open_checkpoint.h"
#include "dynslice/jobs/eval.h"
#include "dynslice/support/error.h"
#include "unit/jobs/job_checks.h"
#include "unit/jobs/model_folder.h"
#include "unit/support/error_matchers.h"

namespace dynslice {
namespace {

using testing::content_of;
using ::testing::ElementsAre;
using testing::expect_dry_run;
using testing::expect_error;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::loss_of;
using testing::ModelFolder;
using ::testing::SizeIs;
using testing::write_piqa;

// A model and another one of more layers; what the second folder's environment keeps is asked of `folder`.
struct TwoModels {
  const ModelFolder deeper = ModelFolder(8, 4);
  const ModelFolder folder;

  CompareRequest request() const {
    CompareRequest request;
    request.common = folder.common("compare");
    request.others = {deeper.in("model")};
    request.text = folder.text();
    request.no_speed = true;
    request.resamples = 200;
    return request;
  }
  CompareRequest with_tasks() const {
    CompareRequest request = this->request();
    write_piqa(folder / "data");
    request.common.data_dir = folder.in("data");
    request.tasks = "piqa";
    return request;
  }
};

CompareResult compare(const CompareRequest& request) { return std::get<CompareResult>(run(request, no_progress())); }

const OrderedJson& figure_of(const CompareResult& result, size_t model, const std::string& name) {
  return result.models.at(model).at("figures").at(name);
}

TEST(CompareJob, HasTheSizesOfTheModelsAndTheirRatio) {
  const TwoModels models;
  const CompareResult result = compare(models.request());
  const auto first = open_checkpoint(models.folder / "model"), second = open_checkpoint(models.deeper / "model");
  const auto parameters = [](const Checkpoint& model) {
    return static_cast<double>(count_cost(model.config()).parameters);
  };
  ASSERT_EQ(result.models.size(), 2U);
  EXPECT_EQ(result.models.at(0).at("path"), models.folder.in("model"));
  EXPECT_EQ(figure_of(result, 0, "parameters").at("value"), parameters(*first));
  EXPECT_EQ(figure_of(result, 1, "parameters").at("value"), parameters(*second));
  EXPECT_EQ(figure_of(result, 1, "parameters").at("ratio"), parameters(*second) / parameters(*first));
  EXPECT_EQ(figure_of(result, 1, "bytes").at("value"), static_cast<double>(stored_bytes(*second)));
  EXPECT_FALSE(figure_of(result, 0, "parameters").contains("ratio"));
}

TEST(CompareJob, HasThePerplexitiesOfTheModelsAndTheirDifference) {
  const TwoModels models;
  const CompareResult result = compare(models.request());
  const TokenWindows windows = models.folder.windows();
  const double first = std::exp(loss_of(*open_checkpoint(models.folder / "model"), windows));
  const double second = std::exp(loss_of(*open_checkpoint(models.deeper / "model"), windows));
  EXPECT_NEAR(figure_of(result, 0, "perplexity").at("value").get<double>(), first, 1e-4 * first);
  EXPECT_NEAR(figure_of(result, 1, "perplexity").at("value").get<double>(), second, 1e-4 * second);
  const OrderedJson& figure = figure_of(result, 1, "perplexity");
  const double difference = figure.at("difference").get<double>();
  EXPECT_NEAR(difference, second - first, 1e-4 * (first + second));
  EXPECT_LE(figure.at("low").get<double>(), difference);
  EXPECT_GE(figure.at("high").get<double>(), difference);
  EXPECT_FALSE(figure_of(result, 0, "perplexity").contains("difference"));
}

TEST(CompareJob, FindsNoDifferenceBetweenAModelAndItself) {
  const TwoModels models;
  CompareRequest request = models.request();
  request.others = {models.folder.in("model")};
  const CompareResult result = compare(request);
  for (const char* key : {"difference", "low", "high"}) {
    EXPECT_EQ(figure_of(result, 1, "perplexity").at(key), 0) << key;
    EXPECT_EQ(figure_of(result, 1, "bits_per_byte").at(key), 0) << key;
  }
}

TEST(CompareJob, HasTheDivergenceThatEvalMeasures) {
  const TwoModels models;
  CompareRequest request = models.request();
  request.kl = true;
  const CompareResult result = compare(request);
  EvalRequest evaluating;
  evaluating.common = models.folder.common("eval");
  evaluating.common.model = models.deeper.in("model");
  evaluating.against = models.folder.in("model");
  evaluating.text = models.folder.text();
  const EvalResult evaluated = std::get<EvalResult>(run(evaluating, no_progress()));
  const Divergence& divergence = *evaluated.text->divergence;
  EXPECT_EQ(figure_of(result, 1, "kl").at("value"), divergence.kl.mean.value);
  EXPECT_EQ(figure_of(result, 1, "kl_median").at("value"), divergence.kl.median());
  EXPECT_EQ(figure_of(result, 1, "same_top").at("value"), divergence.same_top.value);
  EXPECT_EQ(figure_of(result, 0, "perplexity").at("value"), divergence.reference.value);
  EXPECT_FALSE(result.models.at(0).at("figures").contains("kl"));
}

TEST(CompareJob, HasTheAccuraciesThatEvalMeasures) {
  const TwoModels models;
  const CompareResult result = compare(models.with_tasks());
  EvalRequest evaluating;
  evaluating.common = models.with_tasks().common;
  evaluating.common.model = models.deeper.in("model");
  evaluating.against = models.folder.in("model");
  evaluating.tasks = "piqa";
  const EvalResult evaluated = std::get<EvalResult>(run(evaluating, no_progress()));
  const TaskReport& report = evaluated.tasks->report;
  const double accuracy = figures_of(report.answers.outcomes[0]).acc.value;
  const double first = figures_of(report.original->outcomes[0]).acc.value;
  EXPECT_TRUE(result.has_tasks);
  EXPECT_EQ(figure_of(result, 0, "tasks.piqa.acc").at("value"), first);
  EXPECT_EQ(figure_of(result, 1, "tasks.piqa.acc").at("value"), accuracy);
  EXPECT_EQ(figure_of(result, 1, "tasks.piqa.acc").at("difference"), accuracy - first);
  EXPECT_EQ(figure_of(result, 1, "tasks.piqa.agreement").at("value"), report.stability[0].agreement);
  EXPECT_FALSE(result.models.at(0).at("figures").contains("perplexity"));  // it was not asked for
  EXPECT_TRUE(result.text.is_null());
}

TEST(CompareJob, MeasuresTheSpeedOfBothModels) {
  const TwoModels models;
  CompareRequest request = models.request();
  request.no_speed = false;
  request.prompt_tokens = 8;
  request.decode_tokens = 4;
  request.repeats = 1;
  const CompareResult result = compare(request);
  for (const std::string name : {"prefill_tokens_per_second", "decode_tokens_per_second"}) {
    const double first = figure_of(result, 0, name).at("value").get<double>();
    const double second = figure_of(result, 1, name).at("value").get<double>();
    EXPECT_GT(first, 0) << name;
    EXPECT_EQ(figure_of(result, 1, name).at("ratio"), second / first) << name;
  }
}

TEST(CompareJob, TakesFromTheCacheWhatAnEarlierRunMeasured) {
  const TwoModels models;
  const CompareRequest request = models.request();
  const CompareResult first = compare(request);
  EXPECT_THAT(first.models.at(0).at("kept"), IsEmpty());
  const CompareResult again = compare(request);
  for (size_t model = 0; model < 2; ++model) {
    EXPECT_THAT(again.models.at(model).at("kept"), SizeIs(1)) << model;
    EXPECT_EQ(to_text(again.models.at(model).at("figures")), to_text(first.models.at(model).at("figures")));
  }
}

TEST(CompareJob, MeasuresAnewWhatHasChanged) {
  const TwoModels models;
  CompareRequest request = models.request();
  compare(request);
  request.text.samples = 4;
  EXPECT_THAT(compare(request).models.at(0).at("kept"), IsEmpty());
  testing::write_bytes(models.folder / "text.txt", testing::random_words(1024) + "a");
  request.text.samples = 8;
  EXPECT_THAT(compare(request).models.at(0).at("kept"), IsEmpty());
}

TEST(CompareJob, KeepsNothingWithoutACache) {
  const TwoModels models;
  CompareRequest request = models.request();
  request.no_cache = true;
  compare(request);
  EXPECT_THAT(models.folder.kept(), IsEmpty());
  EXPECT_THAT(compare(request).models.at(0).at("kept"), IsEmpty());
}

TEST(CompareJob, WritesTheFiguresThatItGivesAsCsv) {
  const TwoModels models;
  CompareRequest request = models.request();
  request.csv = models.folder.in("figures.csv");
  const CompareResult result = compare(request);
  std::istringstream lines(content_of(models.folder / "figures.csv"));
  std::string line;
  std::getline(lines, line);
  EXPECT_EQ(line, "model,figure,value,stderr,difference,low,high,ratio");
  size_t rows = 0;
  for (; std::getline(lines, line); ++rows) {
    std::vector<std::string> fields;
    std::istringstream parts(line + ",");
    for (std::string field; std::getline(parts, field, ',');) fields.push_back(field);
    ASSERT_EQ(fields.size(), 8U) << line;
    const size_t model = fields[0] == models.folder.in("model") ? 0 : 1;
    EXPECT_EQ(fields[0], result.models.at(model).at("model"));
    const OrderedJson& figure = figure_of(result, model, fields[1]);
    const std::vector<std::string> keys = {"value", "stderr", "difference", "low", "high", "ratio"};
    for (size_t i = 0; i < keys.size(); ++i) {
      EXPECT_EQ(fields[i + 2].empty(), !figure.contains(keys[i])) << line;
      if (figure.contains(keys[i])) {
        EXPECT_EQ(std::stod(fields[i + 2]), figure.at(keys[i])) << line;
      }
    }
  }
  EXPECT_EQ(rows, result.models.at(0).at("figures").size() + result.models.at(1).at("figures").size());
}

TEST(CompareJob, WritesItsTableAsMarkdown) {
  const TwoModels models;
  CompareRequest request = models.request();
  request.markdown = models.folder.in("table.md");
  const CompareResult result = compare(request);
  // Both folders have one name: the models are called what was typed for them.
  EXPECT_THAT(result.table.header, ElementsAre("", models.folder.in("model"), models.deeper.in("model")));
  EXPECT_EQ(result.table.rows.size(), result.models.at(1).at("figures").size());
  EXPECT_EQ(content_of(models.folder / "table.md"), markdown_of(result.table) + "\n" + result.explanation + "\n");
  EXPECT_THAT(result.explanation, HasSubstr("200 resamples"));
}

TEST(CompareJob, PrintsTheModelsAndHowTheyWereCompared) {
  const TwoModels models;
  const CompareResult result = compare(models.request());
  const OrderedJson json = to_json(result);
  EXPECT_EQ(to_text(json.at("models")), to_text(result.models));
  EXPECT_EQ(json.at("bootstrap").at("resamples"), 200);
  EXPECT_EQ(json.at("wall_seconds"), result.seconds);
  EXPECT_EQ(json.at("peak_rss_bytes"), result.peak.rss);
  EXPECT_EQ(to_text(json.at("provenance").at("text")), to_text(result.text));
  EXPECT_FALSE(json.contains("tasks_of"));
}

TEST(CompareJob, WritesNothingInADryRun) {
  const TwoModels models;
  CompareRequest request = models.with_tasks();
  request.kl = true;
  request.no_speed = false;
  request.prompt_tokens = 8;
  request.decode_tokens = 4;
  request.csv = models.folder.in("figures.csv");
  expect_dry_run(models.folder, request, "compare");
}

TEST(CompareJob, RefusesAFileWithoutAFolderBeforeItOpensTheModels) {
  const TwoModels models;
  CompareRequest request = models.request();
  request.common.model = models.folder.in("no_such_model");
  request.csv = models.folder.in("no_such_folder/figures.csv");
  expect_error(ErrorKind::kMissingData, {"figures.csv", "its folder does not exist"}, [&] { compare(request); });
}

TEST(CompareJob, NamesAModelThatIsNotThere) {
  const TwoModels models;
  CompareRequest request = models.request();
  request.others = {models.folder.in("no_such_model")};
  expect_error(ErrorKind::kMissingData, {"no_such_model"}, [&] { compare(request); });
}

TEST(CompareJob, SaysHowToLeaveOutSpeedWhereTheModelsDoNotFitInMemory) {
  const TwoModels models;
  CompareRequest request = models.request();
  request.no_speed = false;
  request.common.max_memory = "1KB";
  expect_error(ErrorKind::kOutOfResources, {"speed of", "--no-speed"}, [&] { compare(request); });
}

}  // namespace
}  // namespace dynslice
