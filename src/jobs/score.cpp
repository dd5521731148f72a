#include "dynslice/jobs/score.h"

#include <chrono>

#include "dynslice/jobs/checkpoint_output.h"
#include "dynslice/jobs/inputs.h"
#include "dynslice/jobs/journaling.h"
#include "dynslice/report/heat_map.h"
#include "dynslice/score/estimate.h"
#include "dynslice/support/error.h"
#include "dynslice/support/files.h"
#include "dynslice/support/log.h"

namespace dynslice {
namespace {

// Scripts try one metric after the other with the same options: those that a metric has no use for are no error.
void tell_unused(const ScoreRequest& options) {
  std::string unused;
  for (const auto& [name, value] : options.common.given) {
    const bool is_text = name == "--calib" || name == "--calib-range" || name == "--samples" || name == "--seqlen" ||
                         name == "--shuffle" || name == "--preset";
    if (is_text) unused += (unused.empty() ? "" : ", ") + name;
  }
  if (!unused.empty())
    log(LogLevel::kInfo, "--metric " + options.metric + " looks at the weights alone; not used: " + unused);
}

ResourceEstimate estimate(const Checkpoint& checkpoint, const ComputeOptions& compute, const Metric& metric,
                          const std::optional<LoadedText>& text) {
  if (!text) return estimate_weight_scores(checkpoint);
  const int64_t kept_streams = metric.window > 1 ? metric.window + 1 : 1;
  const int64_t grams_per_token =
      metric.kind == MetricKind::kCka ? (checkpoint.config().num_layers() + 1) * kCkaTokens : 0;
  return estimate_score(checkpoint, compute, amount_of(text->windows), kept_streams, grams_per_token);
}

}  // namespace

OrderedJson to_json(const ScoreResult& result) {
  OrderedJson json = to_json(result.scores);
  add_cost(json, result.seconds, result.peak);
  return json;
}

Outcome<ScoreResult> run(const ScoreRequest& options, ProgressSink& progress) {
  const auto start = std::chrono::steady_clock::now();
  dynslice::ScoreOptions score{parse_metric(options.metric), options.preset == "paper", {}};
  const Metric& metric = score.metric;
  if (!options.matrix.empty() && metric.kind != MetricKind::kCka)
    throw_error(ErrorKind::kUsage, "--matrix ", options.matrix, ": belongs to --metric cka, not to ", options.metric);
  for (const std::string& file : {options.output, options.matrix}) {
    if (!file.empty()) check_output_file(file);
  }
  ComputeOptions compute = resolve_compute(options.common.device, options.common.dtype);
  const auto checkpoint = open_model(options.common, progress);
  std::optional<LoadedText> text;
  if (metric.needs_text()) {
    text = load_windows(options.calibration, TextUse::kCalibration, options.common, *checkpoint, progress);
  } else {
    compute = {};  // the CPU counts as fast as weights come from the disk
    tell_unused(options);
  }
  auto prepared = prepare(options.common, *checkpoint, compute, {"score", [&](const ComputeOptions& with, int64_t) {
                                                                   return estimate(*checkpoint, with, metric, text);
                                                                 }});
  if (auto* dry_run = std::get_if<DryRun>(&prepared)) return std::move(*dry_run);
  compute = std::get<ResourcePlan>(prepared).compute;
  const auto journal =
      open_journal(options.common, options.output,
                   fingerprint(options.common, compute, *checkpoint, text ? &*text : nullptr, options.calibration),
                   describe_run(options.common, compute, *checkpoint));
  ScoreResult result;
  result.metric = metric;
  with_journal(*journal, options.common, [&] {
    score.journal = JournalPhase(*journal, "scoring");
    LayerScores& scores = result.scores;
    scores = text ? score_layers(LayerWalk(*checkpoint, compute, text->windows.length, progress), text->windows, score)
                  : score_weights(*checkpoint, progress, score.journal);
    scores.provenance = journal->job();
    if (text) {
      scores.provenance["after_final_norm"] = score.after_final_norm;
      scores.provenance["calibration"] = describe(*text, options.calibration);
    }
    if (!options.output.empty()) write_file_atomically(options.output, to_text(to_json(scores)));
    if (!options.matrix.empty()) {
      write_file_atomically(options.matrix,
                            heat_map_svg(scores.matrix, "CKA of layers: " + model_name(options.common, *checkpoint)));
    }
    result.seconds = journal->earlier_seconds() + seconds_since(start);
    result.peak = peak_memory(compute);
  });
  journal->remove_files();
  return result;
}

}  // namespace dynslice
