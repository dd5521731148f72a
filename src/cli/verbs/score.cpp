#include "dynslice/score/score.h"

#include <algorithm>
#include <chrono>
#include <iostream>

#include "cli/checkpoint_output.h"
#include "cli/inputs.h"
#include "cli/journaling.h"
#include "cli/verbs/resources.h"
#include "cli/verbs/verbs.h"
#include "dynslice/report/heat_map.h"
#include "dynslice/resources/estimate.h"
#include "dynslice/score/estimate.h"
#include "dynslice/support/error.h"
#include "dynslice/support/files.h"
#include "dynslice/support/log.h"

namespace dynslice::cli {
namespace {

void print_scores(const LayerScores& scores, const Metric& metric) {
  const auto [low, high] = std::minmax_element(scores.values.begin(), scores.values.end());
  const double span = *high > *low ? *high - *low : 1;
  std::vector<std::vector<std::string>> rows;
  for (size_t i = 0; i < scores.values.size(); ++i) {
    const std::string layers =
        metric.window > 1 ? std::to_string(i) + "-" + std::to_string(i + static_cast<size_t>(metric.window) - 1)
                          : std::to_string(i);
    rows.push_back({layers, format_fixed(scores.values[i], 6), bar((scores.values[i] - *low) / span, 40)});
  }
  print_table({metric.window > 1 ? "layers" : "layer", scores.metric, "(bar: from lowest to highest)"}, rows);
  std::cout << "\nMore important: layers with " << (scores.more_important == MoreImportant::kLow ? "low" : "high")
            << " values.";
  if (metric.needs_text()) std::cout << ' ' << scores.tokens << " tokens.";
  std::cout << '\n';
}

void report(const ScoreOptions& options, const ComputeOptions& compute, const LayerScores& scores, const Metric& metric,
            double seconds) {
  if (options.common.json) {
    OrderedJson json = to_json(scores);
    json["wall_seconds"] = seconds;
    add_peaks(json, peak_memory(compute));
    std::cout << to_text(json);
    return;
  }
  print_scores(scores, metric);
  std::cout << format_duration(seconds) << ", peak memory " << format_bytes(peak_rss_bytes()) << ".\n";
  for (const std::string& file : {options.output, options.matrix}) {
    if (!file.empty()) std::cout << "Written to " << file << ".\n";
  }
}

// Scripts try one metric after the other with the same options: those that a metric has no use for are no error.
void tell_unused(const ScoreOptions& options) {
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

void run(const ScoreOptions& options, TerminalProgress& progress) {
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
  const auto plan = prepare(options.common, *checkpoint, compute, {"score", [&](const ComputeOptions& with, int64_t) {
                                                                     return estimate(*checkpoint, with, metric, text);
                                                                   }});
  if (!plan) return;
  compute = plan->compute;
  const auto journal =
      open_journal(options.common, options.output,
                   fingerprint(options.common, compute, *checkpoint, text ? &*text : nullptr, options.calibration),
                   describe_run(options.common, compute, *checkpoint));
  with_journal(*journal, options.common, [&] {
    score.journal = JournalPhase(*journal, "scoring");
    LayerScores scores =
        text ? score_layers(LayerWalk(*checkpoint, compute, text->windows.length, progress), text->windows, score)
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
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    report(options, compute, scores, metric, journal->earlier_seconds() + seconds);
  });
  journal->remove_files();
}

}  // namespace dynslice::cli
