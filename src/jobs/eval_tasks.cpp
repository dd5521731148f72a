#include "jobs/eval_tasks.h"

#include <chrono>
#include <optional>
#include <utility>

#include "dynslice/evaluate/estimate.h"
#include "dynslice/evaluate/task_run.h"
#include "dynslice/jobs/inputs.h"
#include "dynslice/jobs/journaling.h"
#include "dynslice/resources/estimate.h"
#include "dynslice/support/files.h"
#include "dynslice/text/tokenizer/tokenizer.h"
#include "dynslice/walk/memory_plan.h"
#include "jobs/tasks.h"

namespace dynslice {
namespace {

// A model, and the questions in its tokens.
class EvaluatedModel {
 public:
  EvaluatedModel(std::unique_ptr<Checkpoint> checkpoint, const std::vector<TaskQuestions>& questions)
      : checkpoint_(std::move(checkpoint)),
        started_(std::chrono::steady_clock::now()),
        run_(questions, *load_tokenizer(checkpoint_->path()), *checkpoint_),
        tokenizing_seconds_(seconds_since(started_)) {}

  const Checkpoint& checkpoint() const { return *checkpoint_; }

  ResourceEstimate estimate(const ComputeOptions& compute, int64_t stream_bytes) const {
    return estimate_answers(*checkpoint_, compute, run_.amount(), stream_bytes);
  }

  // From the journal when they are there.
  TaskAnswers answers(const ResourcePlan& plan, const JournalPhase& journal, const std::string& title,
                      ProgressSink& progress) const {
    TaskAnswers answers{checkpoint_->path().string(), {}, 0};
    if (const auto kept = journal.result()) {
      const Json json = Json::parse(kept->dump());
      const JsonReader reader(json, "the journal's result of " + journal.name());
      answers.seconds = reader.number("seconds");
      for (const Json& task : json.at("tasks"))
        answers.outcomes.push_back(task_outcome_from_json(task, reader.where()));
      return answers;
    }
    const auto start = std::chrono::steady_clock::now();
    answers.outcomes = run_.run(*checkpoint_, plan.compute, {plan.stream_bytes, journal, title}, progress);
    answers.seconds = tokenizing_seconds_ + seconds_since(start) + journal.earlier_seconds();
    OrderedJson result = {{"seconds", answers.seconds}, {"tasks", OrderedJson::array()}};
    for (const TaskOutcome& outcome : answers.outcomes) result["tasks"].push_back(to_json(outcome));
    journal.finish(std::move(result));
    return answers;
  }

 private:
  std::unique_ptr<Checkpoint> checkpoint_;
  std::chrono::steady_clock::time_point started_;
  TaskRun run_;
  double tokenizing_seconds_;
};

// What a run takes at most: the models are asked one after the other, and then the text is measured.
ResourceEstimate estimate_all(const EvaluatedModel& model, const std::optional<EvaluatedModel>& original,
                              const std::optional<LoadedText>& text, const ComputeOptions& compute,
                              int64_t stream_bytes) {
  ResourceEstimate all = model.estimate(compute, stream_bytes);
  if (original) all = all + original->estimate(compute, stream_bytes);
  if (text && original) {
    all = all + estimate_divergence(model.checkpoint(), original->checkpoint(), compute, amount_of(text->windows),
                                    stream_bytes);
  } else if (text) {
    all = all + estimate_perplexity(model.checkpoint(), compute, amount_of(text->windows), stream_bytes);
  }
  return all;
}

OrderedJson tasks_fingerprint(const EvalRequest& options, const ComputeOptions& compute, const EvaluatedModel& model,
                              const std::optional<EvaluatedModel>& original,
                              const std::vector<TaskQuestions>& questions) {
  OrderedJson json = fingerprint(options.common, compute, model.checkpoint(), nullptr, options.text);
  json["command"] = "eval-tasks";
  if (original) add_model_files(json, "against", original->checkpoint());
  for (const TaskQuestions& task : questions) {
    json[task.task.name + " sha256"] = task.sha256;
    if (task.examples > 0) json[task.task.name + " examples sha256"] = task.examples_sha256;
  }
  return json;
}

// Both models' answers, and how they compare.
void answer_all(TaskReport& report, const EvaluatedModel& model, const std::optional<EvaluatedModel>& original,
                const ResourcePlan& plan, Journal& journal, const std::string& against, ProgressSink& progress) {
  report.answers = model.answers(plan, JournalPhase(journal, "answers"), "", progress);
  if (!original) return;
  const JournalPhase phase(journal, "answers of the other model");
  report.original = original->answers(plan, phase, " of " + against, progress);
  for (size_t i = 0; i < report.questions.size(); ++i) {
    report.stability.push_back(compare_outcomes(report.original->outcomes[i], report.answers.outcomes[i]));
  }
}

}  // namespace

std::variant<AnsweredTasks, DryRun> answer_tasks(const EvalRequest& options, ProgressSink& progress,
                                                 bool asks_perplexity) {
  const auto start = std::chrono::steady_clock::now();
  AnsweredTasks answered;
  TaskReport& report = answered.tasks.report;
  report.selection = tasks_named(options.tasks);
  const ComputeOptions asked = resolve_compute(options.common.device, options.common.dtype);
  auto checkpoint = open_model(options.common, progress);
  report.questions =
      load_questions(report.selection, {options.limit, options.examples}, options.common.data_dir, progress);
  const EvaluatedModel model(std::move(checkpoint), report.questions);
  std::optional<EvaluatedModel> original;
  if (!options.against.empty())
    original.emplace(open_model(options.common, options.against, progress), report.questions);
  std::optional<LoadedText> text;
  if (asks_perplexity && options.common.dry_run) {
    text = load_windows(options.text, TextUse::kEvaluation, options.common, model.checkpoint(), progress);
  }
  auto prepared = prepare(options.common, model.checkpoint(), asked,
                          {"eval",
                           [&](const ComputeOptions& with, int64_t stream_bytes) {
                             return estimate_all(model, original, text, with, stream_bytes);
                           },
                           default_turn_bytes(model.checkpoint(), asked.device)});
  if (auto* dry_run = std::get_if<DryRun>(&prepared)) return std::move(*dry_run);
  const auto& plan = std::get<ResourcePlan>(prepared);
  answered.journal =
      open_journal(options.common, "", tasks_fingerprint(options, plan.compute, model, original, report.questions),
                   describe_run(options.common, plan.compute, model.checkpoint()));
  Journal& journal = *answered.journal;
  with_journal(journal, options.common, [&] {
    answer_all(report, model, original, plan, journal, options.against, progress);
    if (!options.log_samples.empty()) write_file_atomically(options.log_samples, sample_lines(report));
  });
  answered.tasks.compute = plan.compute;
  answered.tasks.seconds = journal.earlier_seconds() + seconds_since(start);
  answered.tasks.peak = peak_memory(plan.compute);
  answered.tasks.run_description = journal.job();
  return answered;
}

}  // namespace dynslice
