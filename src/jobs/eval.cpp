#include "dynslice/jobs/eval.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <utility>

#include "dynslice/evaluate/estimate.h"
#include "dynslice/jobs/evaluating.h"
#include "dynslice/jobs/inputs.h"
#include "dynslice/jobs/journaling.h"
#include "dynslice/support/error.h"
#include "dynslice/support/log.h"
#include "dynslice/walk/memory_plan.h"
#include "jobs/eval_tasks.h"

namespace dynslice {
namespace {

// Scripts measure perplexity and tasks with the same options: those of the other one are no error.
void tell_unused_text(const EvalRequest& options) {
  std::string unused;
  for (const char* name : {"--ppl-range", "--samples", "--seqlen", "--shuffle", "--protocol"}) {
    if (options.common.is_given(name)) unused += (unused.empty() ? "" : ", ") + std::string(name);
  }
  if (!unused.empty()) log(LogLevel::kInfo, "Without --ppl only the tasks are run; not used: " + unused);
}

// What the text is measured with.
struct TextEvaluationInputs {
  const Checkpoint& checkpoint;
  const Checkpoint* reference;  // of --against
  const TextToScore& to_score;
};

std::variant<ResourcePlan, DryRun> prepare_text(const EvalRequest& options, const TextEvaluationInputs& in,
                                                const ComputeOptions& compute) {
  const TextAmount amount = amount_of(in.to_score.loaded.windows);
  int64_t turn = default_turn_bytes(in.checkpoint, compute.device);
  if (in.reference != nullptr) turn = std::max(turn, default_turn_bytes(*in.reference, compute.device));
  const auto estimate = [&](const ComputeOptions& with, int64_t stream_bytes) {
    return in.reference != nullptr ? estimate_divergence(in.checkpoint, *in.reference, with, amount, stream_bytes)
                                   : estimate_perplexity(in.checkpoint, with, amount, stream_bytes);
  };
  return prepare(options.common, in.checkpoint, compute, {"eval", estimate, turn});
}

void measure_text(const TextEvaluationInputs& in, const PerplexityOptions& measure, TextEvaluation& evaluation,
                  ProgressSink& progress) {
  const TokenWindows& windows = in.to_score.loaded.windows;
  if (in.reference != nullptr) {
    evaluation.divergence =
        measure_divergence(in.checkpoint, *in.reference, evaluation.compute, windows, measure, progress);
    evaluation.perplexity = evaluation.divergence->perplexity;
    evaluation.reference = in.reference->path().string();
    evaluation.tokens_per_second = 2 * evaluation.perplexity.tokens_per_second();  // every token went through both
  } else {
    evaluation.perplexity = measure_perplexity(in.checkpoint, evaluation.compute, windows, measure, progress);
    evaluation.tokens_per_second = evaluation.perplexity.tokens_per_second();
  }
}

std::variant<TextEvaluation, DryRun> evaluate_text(const EvalRequest& options, ProgressSink& progress) {
  const auto start = std::chrono::steady_clock::now();
  const ComputeOptions asked = resolve_compute(options.common.device, options.common.dtype);
  const auto checkpoint = open_model(options.common, progress);
  std::unique_ptr<Checkpoint> reference;
  if (!options.against.empty()) reference = open_model(options.common, options.against, progress);
  const TextToScore to_score =
      load_text_to_score(options.text, options.protocol, options.common, *checkpoint, progress);
  const LoadedText& text = to_score.loaded;
  if (reference) check_same_tokens(*reference, *checkpoint, text);
  const TextEvaluationInputs in{*checkpoint, reference.get(), to_score};
  auto prepared = prepare_text(options, in, asked);
  if (auto* dry_run = std::get_if<DryRun>(&prepared)) return std::move(*dry_run);
  const auto& plan = std::get<ResourcePlan>(prepared);
  PerplexityOptions measure = to_score.measure;
  measure.stream_bytes = plan.stream_bytes;
  OrderedJson job = fingerprint(options.common, plan.compute, *checkpoint, &text, options.text);
  if (reference) add_model_files(job, "against", *reference);
  const auto journal = open_journal(options.common, "", job, describe_run(options.common, plan.compute, *checkpoint));
  TextEvaluation evaluation;
  evaluation.source = text.source;
  evaluation.scored = to_score.scored;
  evaluation.protocol = options.protocol;
  evaluation.compute = plan.compute;
  with_journal(*journal, options.common, [&] {
    measure.journal = JournalPhase(*journal, "evaluation");
    measure_text(in, measure, evaluation, progress);
    evaluation.seconds = journal->earlier_seconds() + seconds_since(start);
    evaluation.peak = peak_memory(plan.compute);
    evaluation.run_description = journal->job();
    evaluation.text_description = describe(text, options.text);
  });
  journal->remove_files();
  return evaluation;
}

Outcome<EvalResult> evaluate_text_alone(const EvalRequest& options, ProgressSink& progress) {
  auto evaluated = evaluate_text(options, progress);
  if (auto* dry_run = std::get_if<DryRun>(&evaluated)) return std::move(*dry_run);
  return EvalResult{{}, std::move(std::get<TextEvaluation>(evaluated))};
}

void add_text(OrderedJson& json, const TextEvaluation& text) {
  json["perplexity"][text.source.name] = to_json(text.perplexity, text.scored, text.protocol);
  if (text.divergence) {
    json["divergence"][text.source.name] = to_json(*text.divergence);
    json["against"] = text.reference;
  }
  json["tokens_per_second"] = text.tokens_per_second;
  finish_json(json, text.peak, text.seconds, text.run_description, text.text_description);
}

}  // namespace

OrderedJson to_json(const EvalResult& result) {
  OrderedJson json;
  if (result.tasks) {
    json = to_json(result.tasks->report);
    add_cost(json, result.tasks->seconds, result.tasks->peak);
    json["provenance"] = result.tasks->run_description;
  }
  if (result.text) add_text(json, *result.text);
  return json;
}

Outcome<EvalResult> run(const EvalRequest& options, ProgressSink& progress,
                        const std::function<void(const TaskEvaluation&)>& on_tasks) {
  if (options.tasks.empty()) return evaluate_text_alone(options, progress);
  const bool asks_perplexity = options.common.is_given("--ppl");
  if (!asks_perplexity) tell_unused_text(options);
  if (!options.log_samples.empty()) check_output_file(options.log_samples);
  auto answered = answer_tasks(options, progress, asks_perplexity);
  if (auto* dry_run = std::get_if<DryRun>(&answered)) return std::move(*dry_run);
  auto& [journal, tasks] = std::get<AnsweredTasks>(answered);
  if (on_tasks) on_tasks(tasks);
  EvalResult result;
  if (asks_perplexity) {
    try {
      auto text = evaluate_text(options, progress);
      if (auto* dry_run = std::get_if<DryRun>(&text)) return std::move(*dry_run);
      result.text = std::move(std::get<TextEvaluation>(text));
    } catch (...) {
      journal->keep();
      throw;
    }
  }
  journal->remove_files();
  result.tasks = std::move(tasks);
  return result;
}

}  // namespace dynslice
