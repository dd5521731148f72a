#include "dynslice/jobs/depth.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "cli/show/outcome.h"
#include "cli/show/sizes.h"
#include "cli/show/terminal.h"
#include "cli/show/training.h"
#include "cli/show/written.h"
#include "cli/verbs/verbs.h"

namespace dynslice::cli {
namespace {

std::string join(const std::vector<int64_t>& numbers) {
  std::string text;
  for (const int64_t number : numbers) text += (text.empty() ? "" : ", ") + std::to_string(number);
  return text;
}

// What stands above the table of sizes, with a line between.
void print_upper_table(std::ostream& out, const std::vector<std::string>& header,
                       const std::vector<std::vector<std::string>>& rows) {
  if (rows.empty()) return;
  print_table(out, header, rows);
  out << '\n';
}

// The table of sizes, what the search came to (a line or more), and where the result lies.
void print_result(std::ostream& out, const DepthResult& result, const CommonOptions& common,
                  const std::string& summary) {
  const auto after = static_cast<int64_t>(result.plan.layers.size());
  print_sizes(out, result.sizes,
              {"layers", std::to_string(result.layers_before), std::to_string(after),
               format_change(static_cast<double>(result.layers_before), static_cast<double>(after))});
  out << '\n' << summary;
  print_size_notice(out, result.sizes);
  out << format_duration(result.seconds) << ", peak memory " << format_bytes(result.peak.rss) << ".\n";
  print_written(out, common, result.output);
}

// ---- drop

void print_influence(std::ostream& out, const DropSearch& search) {
  const std::vector<double>& values = search.scores->values;
  const double highest = std::max(1e-12, *std::max_element(values.begin(), values.end()));
  std::vector<std::vector<std::string>> rows;
  for (size_t layer = 0; layer < values.size(); ++layer) {
    const bool goes = std::ranges::count(search.dropped, static_cast<int64_t>(layer)) > 0;
    rows.push_back(
        {std::to_string(layer), format_fixed(values[layer], 6), goes ? "dropped" : bar(values[layer] / highest, 30)});
  }
  print_upper_table(out, {"layer", "block influence", ""}, rows);
}

void print_drops(std::ostream& out, const DropSearch& search) {
  std::vector<std::vector<std::string>> rows;
  for (const DropTrial& trial : search.trials) {
    rows.push_back(
        {std::to_string(rows.size() + 1), std::to_string(trial.layer), format_fixed(std::exp(trial.loss), 3)});
  }
  print_upper_table(out, {"dropped", "layer", "perplexity"}, rows);
}

void print(std::ostream& out, const DepthResult& result, const DropRequest& request) {
  const auto& search = std::get<DropSearch>(result.search);
  std::string summary = "Dropped: layers " + join(search.dropped);
  if (!request.indices.empty()) {
    summary = "Dropped as named: layers " + join(search.dropped);
  } else if (search.scores) {
    print_influence(out, search);
  } else {
    print_drops(out, search);
    summary += ", in the order of the table; perplexity is that of the calibration text";
  }
  print_result(out, result, request.common, summary + ".\n");
}

// ---- merge

std::string merged_layers(const MergeSearch& search) {
  std::string groups;
  for (const std::vector<int64_t>& layers : search.result.plan.layers) {
    if (layers.size() > 1) groups += (groups.empty() ? "" : ", ") + span_of(layers.front(), layers.back());
  }
  return groups;
}

void print(std::ostream& out, const DepthResult& result, const MergeRequest& request) {
  const auto& search = std::get<MergeSearch>(result.search);
  const MergeResult& merging = search.result;
  std::vector<std::vector<std::string>> rows;
  for (const MergeTrial& trial : merging.trials) {
    rows.push_back({span_of(trial.low, trial.high), format_fixed(trial.cosine, 4),
                    trial.cosine > merging.threshold ? "" : "too far"});
  }
  print_upper_table(out, {"layers as one", "cosine", ""}, rows);
  const std::string groups = merged_layers(search);
  std::string summary = groups.empty() ? "Nothing was merged: no two layers became one above the threshold.\n"
                                       : "Merged (" + name_of(search.rule) + "): layers " + groups + "; cosine " +
                                             format_fixed(merging.cosine, 4) + ", threshold " +
                                             format_fixed(merging.threshold, 4) + ".\n";
  if (merging.layers_run > 0) {
    const double times = static_cast<double>(merging.layers_if_whole) / static_cast<double>(merging.layers_run);
    summary += "The search ran " + std::to_string(merging.layers_run) + " layers, " + format_fixed(times, 1) +
               " times fewer than whole models would have.\n";
  }
  print_result(out, result, request.common, summary);
}

// ---- streamline

void print_windows(std::ostream& out, const StreamlineSearch& search) {
  const auto layers = [&](int64_t first) { return span_of(first, first + search.window - 1); };
  std::vector<std::vector<std::string>> rows;
  if (search.scores) {
    for (const double cosine : search.scores->values)
      rows.push_back({layers(static_cast<int64_t>(rows.size())), format_fixed(cosine, 6)});
  }
  for (const WindowTrial& trial : search.trials)
    rows.push_back({layers(trial.start), format_fixed(std::exp(trial.loss), 3)});
  print_upper_table(out, {"layers", search.scores ? "cosine" : "perplexity, held out"}, rows);
}

// What stands for the layers that went.
std::string describe_stand_in(const StreamlineSearch& search, ReplacementKind replace) {
  if (search.training) {
    return std::string("; a trained ") +
           (replace == ReplacementKind::kLayer ? "layer" : "MLP (" + name_of(replace) + ")") + " stands for them.\n" +
           training_summary(*search.training);
  }
  return search.is_repaired ? "; a linear map makes up for them (" + name_of(replace) + ").\n" : ".\n";
}

void print(std::ostream& out, const DepthResult& result, const StreamlineRequest& request) {
  const auto& search = std::get<StreamlineSearch>(result.search);
  print_windows(out, search);
  if (search.training) {
    const bool as_perplexity = request.loss == ReplacementLoss::kLanguageModel;
    print_upper_table(out, training_header(as_perplexity), training_rows(*search.training, as_perplexity));
  }
  print_result(out, result, request.common,
               search.count == 0 ? "Nothing was to go.\n"
                                 : "Removed: layers " + span_of(search.first, search.first + search.count - 1) +
                                       describe_stand_in(search, request.replace));
}

template <typename Request>
void run_and_print(const Request& request, TerminalProgress& progress, std::ostream& out) {
  present(out, dynslice::run(request, progress), request.common,
          [&](const DepthResult& result) { print(out, result, request); });
}

}  // namespace

void run(const DropRequest& request, TerminalProgress& progress, std::ostream& out) {
  run_and_print(request, progress, out);
}

void run(const MergeRequest& request, TerminalProgress& progress, std::ostream& out) {
  run_and_print(request, progress, out);
}

void run(const StreamlineRequest& request, TerminalProgress& progress, std::ostream& out) {
  run_and_print(request, progress, out);
}

}  // namespace dynslice::cli
