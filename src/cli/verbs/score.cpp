#include "dynslice/jobs/score.h"

#include <algorithm>

#include "cli/show/outcome.h"
#include "cli/verbs/verbs.h"

namespace dynslice::cli {
namespace {

void print_scores(std::ostream& out, const LayerScores& scores, const Metric& metric) {
  const auto [low, high] = std::minmax_element(scores.values.begin(), scores.values.end());
  const double span = *high > *low ? *high - *low : 1;
  std::vector<std::vector<std::string>> rows;
  for (size_t i = 0; i < scores.values.size(); ++i) {
    const std::string layers =
        metric.window > 1 ? std::to_string(i) + "-" + std::to_string(i + static_cast<size_t>(metric.window) - 1)
                          : std::to_string(i);
    rows.push_back({layers, format_fixed(scores.values[i], 6), bar((scores.values[i] - *low) / span, 40)});
  }
  print_table(out, {metric.window > 1 ? "layers" : "layer", scores.metric, "(bar: from lowest to highest)"}, rows);
  out << "\nMore important: layers with " << (scores.more_important == MoreImportant::kLow ? "low" : "high")
      << " values.";
  if (metric.needs_text()) out << ' ' << scores.tokens << " tokens.";
  out << '\n';
}

}  // namespace

void run(const ScoreRequest& request, TerminalProgress& progress, std::ostream& out) {
  present(out, dynslice::run(request, progress), request.common, [&](const ScoreResult& result) {
    print_scores(out, result.scores, result.metric);
    out << format_duration(result.seconds) << ", peak memory " << format_bytes(result.peak.rss) << ".\n";
    for (const std::string& file : {request.output, request.matrix}) {
      if (!file.empty()) out << "Written to " << file << ".\n";
    }
  });
}

}  // namespace dynslice::cli
