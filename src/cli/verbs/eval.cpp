#include <chrono>
#include <iostream>

#include "cli/show/evaluation.h"
#include "cli/verbs/eval_against.h"
#include "cli/verbs/eval_tasks.h"
#include "cli/verbs/prepare_and_show.h"
#include "cli/verbs/verbs.h"
#include "dynslice/evaluate/estimate.h"
#include "dynslice/evaluate/perplexity.h"
#include "dynslice/jobs/evaluating.h"
#include "dynslice/jobs/inputs.h"
#include "dynslice/jobs/journaling.h"
#include "dynslice/jobs/prepare.h"
#include "dynslice/walk/memory_plan.h"

namespace dynslice::cli {
namespace {

void report(const EvalRequest& options, const ComputeOptions& compute, const LoadedText& text, const Perplexity& result,
            const ScoredText& scored, const OrderedJson& run_description, double seconds, OrderedJson json) {
  if (options.common.json) {
    json["perplexity"][text.source.name] = to_json(result, scored, options.protocol);
    json["tokens_per_second"] = result.tokens_per_second();
    finish_json(json, compute, seconds, run_description, describe(text, options.text));
    std::cout << to_text(json);
    return;
  }
  std::cout << title_of(text.source) << " " << describe(result, scored) << result.windows << " windows of "
            << result.seqlen << " tokens, " << result.tokens << " tokens, "
            << format_fixed(result.tokens_per_second(), 0) << " tokens/s in " << dtype_name(compute.dtype) << " on "
            << compute.device.str() << ", " << format_duration(seconds) << ", peak memory "
            << format_bytes(peak_rss_bytes()) << ".\n";
}

// `json` is what the tasks gave, when there were any.
void run_perplexity(const EvalRequest& options, TerminalProgress& progress, OrderedJson json) {
  if (!options.against.empty()) return run_against(options, progress, std::move(json));
  const auto start = std::chrono::steady_clock::now();
  const PerplexityProtocol protocol = parse_protocol(options.protocol);
  ComputeOptions compute = resolve_compute(options.common.device, options.common.dtype);
  const auto checkpoint = open_model(options.common, progress);
  const TextToScore to_score = load_text_to_score(options.text, protocol, options.common, *checkpoint, progress);
  const LoadedText& text = to_score.loaded;
  PerplexityOptions measure = to_score.measure;
  const auto plan =
      prepare_or_show(options.common, *checkpoint, compute,
                      {"eval",
                       [&](const ComputeOptions& with, int64_t stream_bytes) {
                         return estimate_perplexity(*checkpoint, with, amount_of(text.windows), stream_bytes);
                       },
                       default_turn_bytes(*checkpoint, compute.device)});
  if (!plan) return;
  compute = plan->compute;
  measure.stream_bytes = plan->stream_bytes;
  const auto journal =
      open_journal(options.common, "", fingerprint(options.common, compute, *checkpoint, &text, options.text),
                   describe_run(options.common, compute, *checkpoint));
  with_journal(*journal, options.common, [&] {
    measure.journal = JournalPhase(*journal, "evaluation");
    const Perplexity result = measure_perplexity(*checkpoint, compute, text.windows, measure, progress);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    report(options, compute, text, result, to_score.scored, journal->job(), journal->earlier_seconds() + seconds,
           std::move(json));
  });
  journal->remove_files();
}

}  // namespace

void run(const EvalRequest& options, TerminalProgress& progress) {
  if (options.tasks.empty()) return run_perplexity(options, progress, {});
  run_tasks(options, progress, [&](OrderedJson json) { run_perplexity(options, progress, std::move(json)); });
}

}  // namespace dynslice::cli
