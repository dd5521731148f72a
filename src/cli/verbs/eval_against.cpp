#include "cli/verbs/eval_against.h"

#include <algorithm>
#include <chrono>
#include <iostream>

#include "cli/show/evaluation.h"
#include "cli/verbs/prepare_and_show.h"
#include "dynslice/evaluate/divergence.h"
#include "dynslice/evaluate/estimate.h"
#include "dynslice/jobs/evaluating.h"
#include "dynslice/jobs/inputs.h"
#include "dynslice/jobs/journaling.h"
#include "dynslice/jobs/prepare.h"
#include "dynslice/support/error.h"
#include "dynslice/walk/memory_plan.h"

namespace dynslice::cli {
namespace {

struct Outcome {
  Divergence divergence;
  ScoredText scored;
  double seconds = 0;
};

void report(const EvalRequest& options, const ComputeOptions& compute, const LoadedText& text,
            const Checkpoint& reference, const Outcome& outcome, const OrderedJson& run_description, OrderedJson json) {
  const Perplexity& perplexity = outcome.divergence.perplexity;
  const double speed = 2 * perplexity.tokens_per_second();  // every token went through both
  if (options.common.json) {
    json["perplexity"][text.source.name] = to_json(perplexity, outcome.scored, options.protocol);
    json["divergence"][text.source.name] = to_json(outcome.divergence);
    json["against"] = reference.path().string();
    json["tokens_per_second"] = speed;
    finish_json(json, compute, outcome.seconds, run_description, describe(text, options.text));
    std::cout << to_text(json);
    return;
  }
  std::cout << title_of(text.source) << " " << describe(perplexity, outcome.scored) << "\n";
  print_divergence(outcome.divergence, reference.path().string());
  std::cout << "\n"
            << perplexity.windows << " windows of " << perplexity.seqlen << " tokens, " << perplexity.scored_tokens
            << " scored tokens, " << format_fixed(speed, 0) << " tokens/s of both models in "
            << dtype_name(compute.dtype) << " on " << compute.device.str() << ", " << format_duration(outcome.seconds)
            << ", peak memory " << format_bytes(peak_rss_bytes()) << ".\n";
}

}  // namespace

void run_against(const EvalRequest& options, TerminalProgress& progress, OrderedJson json) {
  const auto start = std::chrono::steady_clock::now();
  const PerplexityProtocol protocol = parse_protocol(options.protocol);
  ComputeOptions compute = resolve_compute(options.common.device, options.common.dtype);
  const auto checkpoint = open_model(options.common, progress);
  const auto reference = open_model(options.common, options.against, progress);
  const TextToScore to_score = load_text_to_score(options.text, protocol, options.common, *checkpoint, progress);
  const LoadedText& text = to_score.loaded;
  PerplexityOptions measure = to_score.measure;
  check_same_tokens(*reference, *checkpoint, text);
  Outcome outcome;
  outcome.scored = to_score.scored;
  const auto plan = prepare_or_show(
      options.common, *checkpoint, compute,
      {"eval",
       [&](const ComputeOptions& with, int64_t stream_bytes) {
         return estimate_divergence(*checkpoint, *reference, with, amount_of(text.windows), stream_bytes);
       },
       std::max(default_turn_bytes(*checkpoint, compute.device), default_turn_bytes(*reference, compute.device))});
  if (!plan) return;
  compute = plan->compute;
  measure.stream_bytes = plan->stream_bytes;
  OrderedJson job = fingerprint(options.common, compute, *checkpoint, &text, options.text);
  add_model_files(job, "against", *reference);
  const auto journal = open_journal(options.common, "", job, describe_run(options.common, compute, *checkpoint));
  with_journal(*journal, options.common, [&] {
    measure.journal = JournalPhase(*journal, "evaluation");
    outcome.divergence = measure_divergence(*checkpoint, *reference, compute, text.windows, measure, progress);
    outcome.seconds =
        journal->earlier_seconds() + std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    report(options, compute, text, *reference, outcome, journal->job(), std::move(json));
  });
  journal->remove_files();
}

}  // namespace dynslice::cli
