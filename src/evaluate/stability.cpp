#include "dynslice/evaluate/stability.h"

#include <algorithm>
#include <cmath>

#include "dynslice/support/error.h"

namespace dynslice {
namespace {

double standard_deviation(const std::vector<double>& values) {
  double mean = 0, squares = 0;
  for (const double value : values) mean += value / static_cast<double>(values.size());
  for (const double value : values) squares += (value - mean) * (value - mean);
  return std::sqrt(squares / static_cast<double>(values.size()));
}

// Per-choice losses a token, or the perplexities that they are the logarithms of.
std::vector<double> losses_of(const QuestionOutcome& question, bool as_perplexity) {
  std::vector<double> losses;
  for (size_t i = 0; i < question.log_likelihoods.size(); ++i) {
    const double loss = -question.log_likelihoods[i] / static_cast<double>(question.tokens[i]);
    // The square of more than e^300 overflows; such choices all count as equally unlikely.
    losses.push_back(as_perplexity ? std::exp(std::min(loss, 300.0)) : loss);
  }
  return losses;
}

std::vector<double> weights_of(const TaskOutcome& original, bool as_perplexity) {
  std::vector<double> weights;
  for (const QuestionOutcome& question : original.questions) {
    weights.push_back(standard_deviation(losses_of(question, as_perplexity)));
  }
  const double top = *std::max_element(weights.begin(), weights.end());
  double sum = 0;
  for (double& weight : weights) sum += weight = std::exp(weight - top);
  for (double& weight : weights) weight /= sum;
  return weights;
}

struct WeightedAgreement {
  double value = 0, questions = 0;
};

WeightedAgreement agreement(const TaskOutcome& original, const TaskOutcome& compressed,
                            const std::vector<double>& weights) {
  WeightedAgreement result;
  double squares = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    if (original.questions[i].is_right == compressed.questions[i].is_right) result.value += weights[i];
    squares += weights[i] * weights[i];
  }
  result.questions = 1 / squares;
  return result;
}

void check_same_questions(const TaskOutcome& original, const TaskOutcome& compressed) {
  const auto same = [](const QuestionOutcome& a, const QuestionOutcome& b) {
    return a.id == b.id && a.gold == b.gold && a.log_likelihoods.size() == b.log_likelihoods.size();
  };
  const bool fits =
      original.name == compressed.name && original.questions.size() == compressed.questions.size() &&
      !original.questions.empty() &&
      std::equal(original.questions.begin(), original.questions.end(), compressed.questions.begin(), same);
  if (!fits) throw_error(ErrorKind::kUsage, original.name, ": the two models were not asked the same questions");
}

}  // namespace

Stability compare_outcomes(const TaskOutcome& original, const TaskOutcome& compressed) {
  check_same_questions(original, compressed);
  Stability stability;
  const auto by_perplexity = agreement(original, compressed, weights_of(original, true));
  const auto by_loss = agreement(original, compressed, weights_of(original, false));
  stability.value = by_perplexity.value;
  stability.questions_behind_value = by_perplexity.questions;
  stability.by_loss = by_loss.value;
  stability.questions_behind_loss = by_loss.questions;
  const std::vector<double> equal(original.questions.size(), 1.0 / static_cast<double>(original.questions.size()));
  stability.agreement = agreement(original, compressed, equal).value;
  for (size_t i = 0; i < original.questions.size(); ++i) {
    const QuestionOutcome &before = original.questions[i], &now = compressed.questions[i];
    const auto number = static_cast<int64_t>(i);
    if (before.is_right && !now.is_right) stability.lost.push_back(number);
    if (!before.is_right && now.is_right) stability.gained.push_back(number);
    if (!before.is_right && !now.is_right && before.prediction != now.prediction) stability.changed.push_back(number);
  }
  return stability;
}

}  // namespace dynslice
