#include "dynslice/evaluate/task_run.h"

#include <algorithm>

namespace dynslice {
namespace {

// The first of the largest values.
int64_t index_of_largest(const std::vector<double>& values) {
  return std::max_element(values.begin(), values.end()) - values.begin();
}

// The figures of one question from the scores of its choices.
QuestionOutcome outcome_of(const TaskInfo& task, const Question& question, const std::vector<AnswerScore>& scores) {
  QuestionOutcome outcome;
  outcome.id = question.id;
  outcome.gold = question.gold;
  std::vector<double> per_character;
  for (size_t i = 0; i < scores.size(); ++i) {
    outcome.log_likelihoods.push_back(scores[i].log_likelihood);
    per_character.push_back(scores[i].log_likelihood / static_cast<double>(question.characters[i]));
  }
  outcome.prediction = index_of_largest(outcome.log_likelihoods);
  outcome.prediction_norm = index_of_largest(per_character);
  outcome.is_right = task.is_cloze() ? scores.front().is_greedy : outcome.prediction == outcome.gold;
  outcome.is_right_norm = task.is_cloze() ? outcome.is_right : outcome.prediction_norm == outcome.gold;
  return outcome;
}

}  // namespace

TaskRun::TaskRun(const std::vector<TaskQuestions>& tasks, const Tokenizer& tokenizer, const Checkpoint& checkpoint)
    : tasks_(tasks) {
  AnswerEncoder encoder(tokenizer, checkpoint.config().max_position_embeddings);
  for (const TaskQuestions& task : tasks) {
    for (const Question& question : task.questions) {
      check_interrupt();
      for (size_t i = 0; i < question.continuations.size(); ++i) {
        answers_.push_back(encoder.encode(question.context_of(i), question.continuations[i], question.where));
      }
    }
  }
  amount_ = count_rows(answers_);
}

int64_t TaskRun::questions() const {
  int64_t count = 0;
  for (const TaskQuestions& task : tasks_) count += static_cast<int64_t>(task.questions.size());
  return count;
}

std::vector<TaskOutcome> TaskRun::run(const Checkpoint& checkpoint, const ComputeOptions& compute,
                                      const AnswerOptions& options, ProgressSink& progress) const {
  const std::vector<AnswerScore> scores = score_answers(checkpoint, compute, answers_, options, progress);
  std::vector<TaskOutcome> outcomes;
  auto answer = answers_.begin();
  auto score = scores.begin();
  for (const TaskQuestions& task : tasks_) {
    TaskOutcome outcome{task.task.name,
                        task.task.version,
                        task.examples,
                        task.sha256,
                        task.task.is_cloze(),
                        task.task.has_acc_norm,
                        {}};
    for (const Question& question : task.questions) {
      const auto choices = static_cast<int64_t>(question.continuations.size());
      QuestionOutcome one = outcome_of(task.task, question, {score, score + choices});
      score += choices;
      for (int64_t left = choices; left > 0; --left, ++answer) {
        one.tokens.push_back(answer->scored);
        one.cut = std::max(one.cut, answer->cut);
      }
      outcome.questions.push_back(std::move(one));
    }
    outcomes.push_back(std::move(outcome));
  }
  return outcomes;
}

}  // namespace dynslice
