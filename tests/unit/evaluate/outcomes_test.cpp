#include "dynslice/evaluate/outcomes.h"

#include <gtest/gtest.h>

#include <cmath>

#include "dynslice/evaluate/stability.h"
#include "unit/support/error_matchers.h"

namespace dynslice {
namespace {

using testing::expect_error;

QuestionOutcome question(bool is_right, std::vector<double> log_likelihoods, std::vector<int64_t> tokens) {
  QuestionOutcome outcome;
  outcome.id = "q";
  outcome.prediction = is_right ? 0 : 1;
  outcome.is_right = is_right;
  outcome.log_likelihoods = std::move(log_likelihoods);
  outcome.tokens = std::move(tokens);
  return outcome;
}

TaskOutcome task(std::vector<QuestionOutcome> questions, const std::string& name = "t") {
  TaskOutcome outcome;
  outcome.name = name;
  outcome.version = 1;
  outcome.questions = std::move(questions);
  return outcome;
}

TEST(TaskFigures, AreMeansWithTheirStandardErrors) {
  TaskOutcome outcome = task(
      {question(true, {-1}, {1}), question(false, {-2}, {1}), question(true, {-3}, {1}), question(true, {-4}, {1})});
  outcome.has_acc_norm = outcome.is_cloze = true;
  outcome.questions[1].is_right_norm = true;
  outcome.questions[2].cut = 7;
  const TaskFigures figures = figures_of(outcome);
  EXPECT_EQ(figures.questions, 4);
  EXPECT_EQ(figures.cut_questions, 1);
  EXPECT_DOUBLE_EQ(figures.acc.value, 0.75);
  EXPECT_DOUBLE_EQ(figures.acc.stderr_.value(), 0.25);  // √(0.75 / 3) / √4
  EXPECT_DOUBLE_EQ(figures.acc_norm->value, 0.25);
  EXPECT_DOUBLE_EQ(figures.perplexity->value, std::exp(2.5));
  EXPECT_DOUBLE_EQ(figures.perplexity->stderr_.value(), std::exp(2.5) * std::sqrt(5.0 / 3) / 2);
}

TEST(TaskFigures, OfOneQuestionHaveNoStandardError) {
  const TaskFigures figures = figures_of(task({question(true, {-1}, {1})}));
  EXPECT_EQ(figures.acc.value, 1);
  EXPECT_FALSE(figures.acc.stderr_.has_value());
  EXPECT_FALSE(figures.acc_norm.has_value());
}

TEST(TaskFigures, OfAGroupCountEveryQuestionOnceAndPoolTheErrors) {
  const QuestionOutcome right = question(true, {-1}, {1}), wrong = question(false, {-1}, {1});
  const std::vector<TaskOutcome> outcomes{task({right, wrong}, "a"), task({right, right, right, wrong}, "b"),
                                          task({wrong}, "other")};
  const TaskFigures figures = figures_of({"group", 2, {"a", "b"}}, outcomes);
  EXPECT_EQ(figures.questions, 6);
  EXPECT_DOUBLE_EQ(figures.acc.value, 4.0 / 6);
  // Standard errors 1/2 and 1/4: √((1·2/4 + 3·4/16) / (6 - 2) / 6), as pooled_sample_stderr of lm_eval.api.metrics.
  EXPECT_DOUBLE_EQ(figures.acc.stderr_.value(), std::sqrt(1.25 / 4 / 6));
}

TEST(TaskOutcome, SurvivesItsJson) {
  TaskOutcome outcome = task({question(true, {-1.25, -3}, {2, 3}), question(false, {-1e-300, -7}, {1, 1})});
  outcome.examples = 5;
  outcome.sha256 = "abc";
  outcome.has_acc_norm = true;
  outcome.questions[1].cut = 9;
  outcome.questions[1].prediction_norm = 1;
  const TaskOutcome back = task_outcome_from_json(Json::parse(to_json(outcome).dump()), "here");
  EXPECT_EQ(to_json(back), to_json(outcome));
  EXPECT_EQ(back.questions[1].log_likelihoods, outcome.questions[1].log_likelihoods);
  EXPECT_EQ(back.examples, 5);
}

TEST(TaskOutcome, RefusesJsonThatIsNone) {
  Json json = Json::parse(to_json(task({question(true, {-1, -2}, {2, 3})})).dump());
  json["questions"][0]["gold"] = 2;
  expect_error(ErrorKind::kBadInput, {"here: question 0", "gold"}, [&] { task_outcome_from_json(json, "here"); });
  json["questions"][0]["gold"] = 1;
  json["questions"][0]["tokens"] = {1};
  expect_error(ErrorKind::kBadInput, {"here: question 0", "tokens"}, [&] { task_outcome_from_json(json, "here"); });
  json.erase("questions");
  expect_error(ErrorKind::kBadInput, {"here", "questions"}, [&] { task_outcome_from_json(json, "here"); });
}

TEST(Stability, WeighsQuestionsByTheSpreadOfTheOriginalsPerplexities) {
  // Losses a token 0 and ln 3: perplexities 1 and 3, whose deviation is 1; equal losses: deviation 0.
  const QuestionOutcome sure = question(true, {0, -2 * std::log(3.0)}, {1, 2});
  const QuestionOutcome unsure = question(true, {-1, -1}, {1, 1});
  const TaskOutcome original = task({sure, unsure, unsure});
  const TaskOutcome compressed =
      task({question(true, {-5, -9}, {1, 2}), question(false, {-5, -4}, {1, 1}), question(true, {-4, -5}, {1, 1})});
  const Stability stability = compare_outcomes(original, compressed);
  const double e = std::exp(1.0), by_loss = std::exp(std::log(3.0) / 2);
  EXPECT_NEAR(stability.value, (e + 1) / (e + 2), 1e-12);
  EXPECT_NEAR(stability.by_loss, (by_loss + 1) / (by_loss + 2), 1e-12);
  EXPECT_NEAR(stability.questions_behind_value, (e + 2) * (e + 2) / (e * e + 2), 1e-12);
  EXPECT_NEAR(stability.agreement, 2.0 / 3, 1e-12);
  EXPECT_EQ(stability.lost, (std::vector<int64_t>{1}));
  EXPECT_TRUE(stability.gained.empty());
}

TEST(Stability, CountsQuestionsThatBothGetWrongAsStable) {
  QuestionOutcome other_choice = question(false, {-1, -2, -3}, {1, 1, 1});
  other_choice.prediction = 2;
  const QuestionOutcome wrong = question(false, {-1, -2, -3}, {1, 1, 1}),
                        right = question(true, {-1, -2, -3}, {1, 1, 1});
  const Stability stability = compare_outcomes(task({wrong, wrong, wrong}), task({wrong, other_choice, right}));
  EXPECT_NEAR(stability.value, 2.0 / 3, 1e-12);
  EXPECT_EQ(stability.changed, (std::vector<int64_t>{1}));
  EXPECT_EQ(stability.gained, (std::vector<int64_t>{2}));
  EXPECT_TRUE(stability.lost.empty());
}

TEST(Stability, StaysFiniteWhateverTheLosses) {
  const TaskOutcome original = task({question(true, {-2000, -1}, {1, 1}), question(true, {-1, -1}, {1, 1})});
  const Stability stability = compare_outcomes(original, original);
  EXPECT_DOUBLE_EQ(stability.value, 1);
  EXPECT_DOUBLE_EQ(stability.by_loss, 1);
}

TEST(Stability, RefusesOtherQuestions) {
  TaskOutcome one = task({question(true, {-1}, {1})}), other = one;
  other.questions[0].id = "r";
  expect_error(ErrorKind::kUsage, {"t: ", "same questions"}, [&] { compare_outcomes(one, other); });
  expect_error(ErrorKind::kUsage, {"same questions"}, [&] { compare_outcomes(one, task({})); });
}

}  // namespace
}  // namespace dynslice
