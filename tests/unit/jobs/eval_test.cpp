#include "dynslice/jobs/eval.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <numbers>
#include <sstream>
#include <string>
#include <variant>
#include <vector>

#include "aten.h"
#include "dynslice/checkpoint/open_checkpoint.h"
#include "dynslice/support/error.h"
#include "unit/jobs/job_checks.h"
#include "unit/jobs/model_folder.h"
#include "unit/support/error_matchers.h"

namespace dynslice {
namespace {

using testing::byte_tokenizer;
using testing::content_of;
using ::testing::ElementsAre;
using testing::expect_dry_run;
using testing::expect_error;
using ::testing::IsEmpty;
using testing::logits_of;
using testing::loss_of;
using testing::ModelFolder;
using testing::RestoresThreads;
using testing::write_bytes;
using testing::write_piqa;

EvalRequest eval_of(const ModelFolder& folder) {
  EvalRequest request;
  request.common = folder.common("eval");
  request.text = folder.text();
  return request;
}

EvalRequest tasks_of(const ModelFolder& folder) {
  EvalRequest request = eval_of(folder);
  write_piqa(folder / "data");
  request.common.data_dir = folder.in("data");
  request.tasks = "piqa";
  return request;
}

EvalResult evaluate(const EvalRequest& request) { return std::get<EvalResult>(run(request, no_progress())); }

// Log-probabilities of the next token behind every token but the last of a window, [windows, length - 1, vocabulary].
at::Tensor predictions_of(const ModelFolder& folder, const TokenWindows& windows) {
  const at::Tensor logits = logits_of(*open_checkpoint(folder / "model"), windows).to(at::kDouble);
  return logits.log_softmax(-1).reshape({windows.count, windows.length, -1}).slice(1, 0, windows.length - 1);
}

// Log-likelihood of `continuation` behind `context`; bytes are tokens.
double log_likelihood(const ModelFolder& folder, const std::string& context, const std::string& continuation) {
  TokenWindows window{{}, 1, static_cast<int64_t>(context.size() + continuation.size())};
  for (const char c : context + continuation) window.ids.push_back(static_cast<unsigned char>(c));
  const at::Tensor predictions = predictions_of(folder, window)[0];
  double sum = 0;
  for (size_t place = context.size(); place < window.ids.size(); ++place)
    sum += predictions[static_cast<int64_t>(place) - 1][window.ids[place]].item<double>();
  return sum;
}

// ---- Text

TEST(EvalJob, MeasuresThePerplexityOfTheText) {
  const ModelFolder folder;
  const EvalResult result = evaluate(eval_of(folder));
  EXPECT_FALSE(result.tasks.has_value());
  ASSERT_TRUE(result.text.has_value());
  const double loss = loss_of(*open_checkpoint(folder / "model"), folder.windows());
  const Perplexity& perplexity = result.text->perplexity;
  EXPECT_NEAR(perplexity.value, std::exp(loss), 1e-4 * std::exp(loss));
  EXPECT_EQ(perplexity.windows, 8);
  EXPECT_EQ(perplexity.tokens, 8 * 32);
  EXPECT_EQ(perplexity.scored_tokens, 8 * 31);
  EXPECT_EQ(result.text->scored.bytes, 8 * 31);  // every byte is a token
  EXPECT_FALSE(result.text->divergence.has_value());
  EXPECT_THAT(folder.kept(), IsEmpty());
}

TEST(EvalJob, ScoresTheSecondHalfOfAWindowAsLlamaCppDoes) {
  const ModelFolder folder;
  EvalRequest request = eval_of(folder);
  request.protocol = PerplexityProtocol::kLlamaCpp;
  const EvalResult result = evaluate(request);
  const TokenWindows windows = folder.windows();
  const at::Tensor predictions = predictions_of(folder, windows);
  const at::Tensor targets = at::tensor(windows.ids).to(at::kLong).reshape({8, 32}).slice(1, 1).unsqueeze(-1);
  const at::Tensor losses = -predictions.gather(-1, targets).squeeze(-1);
  const int64_t scored = result.text->perplexity.scored_tokens / 8;
  EXPECT_NEAR(result.text->perplexity.mean_loss, losses.slice(1, 31 - scored).mean().item<double>(), 1e-4);
  EXPECT_NEAR(static_cast<double>(scored), 16, 1);
  EXPECT_EQ(result.text->protocol, PerplexityProtocol::kLlamaCpp);
}

TEST(EvalJob, PrintsWhatItMeasuredOfTheText) {
  const ModelFolder folder;
  const EvalResult result = evaluate(eval_of(folder));
  const Perplexity& perplexity = result.text->perplexity;
  const OrderedJson json = to_json(result);
  const OrderedJson& of_text = json.at("perplexity").at("text.txt");
  EXPECT_EQ(of_text.at("value"), perplexity.value);
  EXPECT_EQ(of_text.at("stderr"), perplexity.standard_error);
  EXPECT_EQ(of_text.at("scored_tokens"), perplexity.scored_tokens);
  EXPECT_EQ(of_text.at("protocol"), "full");
  EXPECT_NEAR(of_text.at("bits_per_byte").get<double>(), perplexity.mean_loss / std::numbers::ln2, 1e-12);
  EXPECT_NEAR(of_text.at("byte_perplexity").get<double>(), perplexity.value, 1e-9 * perplexity.value);
  EXPECT_EQ(json.at("wall_seconds"), result.text->seconds);
  EXPECT_EQ(json.at("tokens_per_second"), result.text->tokens_per_second);
  EXPECT_EQ(json.at("provenance").at("text").at("windows"), 8);
  EXPECT_FALSE(json.contains("divergence"));
  EXPECT_FALSE(json.contains("tasks"));
}

TEST(EvalJob, MeasuresHowFarTwoModelsPredictionsAreApart) {
  const ModelFolder dense(8);
  const ModelFolder folder;
  EvalRequest request = eval_of(folder);
  request.against = dense.in("model");
  const EvalResult result = evaluate(request);
  ASSERT_TRUE(result.text->divergence.has_value());
  const Divergence& divergence = *result.text->divergence;
  const at::Tensor own = predictions_of(folder, folder.windows()), reference = predictions_of(dense, folder.windows());
  EXPECT_NEAR(divergence.kl.mean.value, (reference.exp() * (reference - own)).sum(-1).mean().item<double>(), 1e-4);
  EXPECT_DOUBLE_EQ(divergence.same_top.value,
                   (reference.argmax(-1) == own.argmax(-1)).to(at::kDouble).mean().item<double>());
  const double loss = loss_of(*open_checkpoint(folder / "model"), folder.windows());
  const double dense_loss = loss_of(*open_checkpoint(dense / "model"), folder.windows());
  EXPECT_NEAR(divergence.log_ratio.value, loss - dense_loss, 1e-4);
  EXPECT_EQ(result.text->perplexity.value, divergence.perplexity.value);
  EXPECT_EQ(result.text->reference, dense.in("model"));
  const OrderedJson json = to_json(result);
  const OrderedJson& of_text = json.at("divergence").at("text.txt");
  EXPECT_EQ(of_text.at("kl").at("mean"), divergence.kl.mean.value);
  EXPECT_EQ(of_text.at("perplexity").at("value"), divergence.reference.value);
  EXPECT_EQ(of_text.at("ratio").at("value"), divergence.ratio.value);
  EXPECT_EQ(of_text.at("same_top").at("value"), divergence.same_top.value);
  EXPECT_EQ(json.at("against"), dense.in("model"));
}

TEST(EvalJob, FindsNoDivergenceFromTheModelItself) {
  const ModelFolder folder;
  EvalRequest request = eval_of(folder);
  request.against = folder.in("model");
  const Divergence divergence = *evaluate(request).text->divergence;
  EXPECT_NEAR(divergence.kl.maximum, 0, 1e-6);
  EXPECT_EQ(divergence.log_ratio.value, 0);
  EXPECT_EQ(divergence.same_top.value, 1);
}

TEST(EvalJob, MeasuresTheSameWithAnyNumberOfThreads) {
  const RestoresThreads restores;
  const ModelFolder folder;
  EvalRequest request = eval_of(folder);
  request.common.threads = 1;
  const double one = evaluate(request).text->perplexity.mean_loss;
  request.common.threads = 2;
  EXPECT_NEAR(evaluate(request).text->perplexity.mean_loss, one, 1e-5);  // products add in another order
}

TEST(EvalJob, WritesNothingInADryRun) {
  const ModelFolder folder;
  expect_dry_run(folder, eval_of(folder), "eval");
  EvalRequest request = tasks_of(folder);
  request.log_samples = folder.in("samples.jsonl");
  expect_dry_run(folder, request, "eval");
  request.common.given = {{"--ppl", folder.in("text.txt")}};
  expect_dry_run(folder, request, "eval");
  EXPECT_THAT(folder.kept(), IsEmpty());
}

TEST(EvalJob, RefusesAModelOfOtherTokensToCompareWith) {
  const ModelFolder folder, other;
  Json tokenizer = Json::parse(byte_tokenizer());
  std::swap(tokenizer["model"]["vocab"]["a"], tokenizer["model"]["vocab"]["b"]);
  write_bytes(other / "model" / "tokenizer.json", tokenizer.dump());
  EvalRequest request = eval_of(folder);
  request.against = other.in("model");
  expect_error(ErrorKind::kUsage, {other.in("model"), "other tokens", "text.txt"}, [&] { evaluate(request); });
}

TEST(EvalJob, RefusesWindowsThatAreTooLong) {
  const ModelFolder folder;
  EvalRequest request = eval_of(folder);
  request.text.seqlen = 129;
  expect_error(ErrorKind::kUsage, {"--seqlen 129", "128"}, [&] { evaluate(request); });
}

// ---- Tasks

TEST(EvalTasksJob, PrefersTheAnswersThatTheModelFindsLikelier) {
  const ModelFolder folder;
  const EvalResult result = evaluate(tasks_of(folder));
  ASSERT_TRUE(result.tasks.has_value());
  EXPECT_FALSE(result.text.has_value());  // perplexity was not asked for
  const TaskReport& report = result.tasks->report;
  ASSERT_EQ(report.questions.size(), 1U);
  ASSERT_EQ(report.answers.outcomes.size(), 1U);
  const TaskOutcome& outcome = report.answers.outcomes[0];
  ASSERT_EQ(outcome.questions.size(), 4U);
  double right = 0;
  for (size_t number = 0; number < 4; ++number) {
    const Question& question = report.questions[0].questions[number];
    const QuestionOutcome& answer = outcome.questions[number];
    std::vector<double> expected;
    for (size_t choice = 0; choice < 2; ++choice) {
      expected.push_back(log_likelihood(folder, question.context_of(choice), question.continuations[choice]));
      EXPECT_NEAR(answer.log_likelihoods[choice], expected[choice], 1e-3) << question.where;
    }
    const int64_t likelier = expected[1] > expected[0] ? 1 : 0;
    EXPECT_EQ(answer.prediction, likelier);
    EXPECT_EQ(answer.is_right, likelier == question.gold);
    right += likelier == question.gold ? 1 : 0;
  }
  EXPECT_EQ(to_json(result).at("tasks").at("piqa").at("acc"), right / 4);
}

TEST(EvalTasksJob, PrintsTheFiguresOfTheOutcomes) {
  const ModelFolder folder;
  const EvalResult result = evaluate(tasks_of(folder));
  const TaskReport& report = result.tasks->report;
  const OrderedJson json = to_json(result);
  const OrderedJson& piqa = json.at("tasks").at("piqa");
  const TaskFigures figures = figures_of(report.answers.outcomes[0]);
  EXPECT_EQ(piqa.at("acc"), figures.acc.value);
  EXPECT_EQ(piqa.at("stderr"), *figures.acc.stderr_);
  EXPECT_EQ(piqa.at("acc_norm"), figures.acc_norm->value);
  EXPECT_EQ(piqa.at("n"), 4);
  EXPECT_EQ(piqa.at("data").at("sha256"), report.questions[0].sha256);
  EXPECT_FALSE(piqa.contains("stability"));
  EXPECT_EQ(json.at("questions"), 4);
  EXPECT_EQ(json.at("task_seconds"), report.answers.seconds);
  EXPECT_EQ(json.at("wall_seconds"), result.tasks->seconds);
  EXPECT_FALSE(json.contains("perplexity"));
}

TEST(EvalTasksJob, TellsOfTheTasksBeforeTheTextThatIsAskedForToo) {
  const ModelFolder folder;
  EvalRequest request = tasks_of(folder);
  request.common.given = {{"--ppl", folder.in("text.txt")}};
  std::vector<std::string> told;
  const auto outcome = run(request, no_progress(), [&](const TaskEvaluation& tasks) {
    for (const TaskOutcome& of_task : tasks.report.answers.outcomes) told.push_back(of_task.name);
  });
  EXPECT_THAT(told, ElementsAre("piqa"));
  const auto& result = std::get<EvalResult>(outcome);
  ASSERT_TRUE(result.tasks && result.text);
  EXPECT_EQ(result.text->perplexity.value, evaluate(eval_of(folder)).text->perplexity.value);
  EXPECT_NEAR(to_json(result).at("wall_seconds").get<double>(), result.tasks->seconds + result.text->seconds, 1e-9);
  EXPECT_THAT(folder.kept(), IsEmpty());
}

TEST(EvalTasksJob, StopsAtTheLimit) {
  const ModelFolder folder;
  EvalRequest request = tasks_of(folder);
  const TaskOutcome all = evaluate(request).tasks->report.answers.outcomes[0];
  request.limit = 2;
  const TaskOutcome some = evaluate(request).tasks->report.answers.outcomes[0];
  ASSERT_EQ(some.questions.size(), 2U);
  for (size_t number = 0; number < 2; ++number)
    EXPECT_NEAR(some.questions[number].log_likelihoods[0], all.questions[number].log_likelihoods[0], 1e-4);
}

TEST(EvalTasksJob, ComparesTheAnswersWithAnotherModels) {
  const ModelFolder dense(8);
  const ModelFolder folder;
  EvalRequest request = tasks_of(folder);
  const TaskOutcome own = evaluate(request).tasks->report.answers.outcomes[0];
  request.against = dense.in("model");
  const EvalResult result = evaluate(request);
  const TaskReport& report = result.tasks->report;
  ASSERT_TRUE(report.original.has_value());
  ASSERT_EQ(report.stability.size(), 1U);
  double agreed = 0;
  for (size_t number = 0; number < 4; ++number) {
    const QuestionOutcome& other = report.original->outcomes[0].questions[number];
    EXPECT_EQ(report.answers.outcomes[0].questions[number].prediction, own.questions[number].prediction);
    agreed += other.is_right == own.questions[number].is_right ? 1 : 0;
  }
  EXPECT_EQ(report.stability[0].agreement, agreed / 4);
  const OrderedJson piqa = to_json(result).at("tasks").at("piqa");
  EXPECT_EQ(piqa.at("stability"), report.stability[0].value);
  EXPECT_EQ(piqa.at("agreement"), report.stability[0].agreement);
  EXPECT_EQ(piqa.at("against").at("acc"), figures_of(report.original->outcomes[0]).acc.value);
}

TEST(EvalTasksJob, WritesALineForEveryQuestion) {
  const ModelFolder folder;
  EvalRequest request = tasks_of(folder);
  request.log_samples = folder.in("samples.jsonl");
  const TaskReport report = evaluate(request).tasks->report;
  std::istringstream lines(content_of(folder / "samples.jsonl"));
  size_t number = 0;
  for (std::string line; std::getline(lines, line); ++number) {
    const Json sample = Json::parse(line);
    ASSERT_LT(number, 4U);
    EXPECT_EQ(sample.at("task"), "piqa");
    EXPECT_EQ(sample.at("question"), number);
    EXPECT_EQ(sample.at("continuations").get<std::vector<std::string>>(),
              report.questions[0].questions[number].continuations);
    EXPECT_EQ(question_outcome_from_json(sample, "sample").log_likelihoods,
              report.answers.outcomes[0].questions[number].log_likelihoods);
  }
  EXPECT_EQ(number, 4U);
}

TEST(EvalTasksJob, RefusesNamesThatAreNone) {
  const ModelFolder folder;
  EvalRequest request = tasks_of(folder);
  request.tasks = "piqqa";
  expect_error(ErrorKind::kUsage, {"piqqa", "piqa"}, [&] { evaluate(request); });
  request.tasks = "piqa,";
  expect_error(ErrorKind::kUsage, {"--tasks piqa,", "empty name"}, [&] { evaluate(request); });
}

TEST(EvalTasksJob, RefusesSamplesWithoutAFolderBeforeItOpensTheModel) {
  const ModelFolder folder;
  EvalRequest request = tasks_of(folder);
  request.common.model = folder.in("no_such_model");
  request.log_samples = folder.in("no_such_folder/samples.jsonl");
  expect_error(ErrorKind::kMissingData, {"samples.jsonl", "its folder does not exist"}, [&] { evaluate(request); });
}

}  // namespace
}  // namespace dynslice
