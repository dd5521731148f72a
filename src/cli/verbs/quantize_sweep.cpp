#include "cli/verbs/quantize_sweep.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <iostream>

#include "cli/verbs/prepare_and_show.h"
#include "dynslice/jobs/checkpoint_output.h"
#include "dynslice/jobs/journaling.h"
#include "dynslice/jobs/prepare.h"
#include "dynslice/jobs/quantizing.h"
#include "dynslice/jobs/sweep_tasks.h"
#include "dynslice/quantize/estimate.h"
#include "dynslice/report/line_chart.h"
#include "dynslice/resources/estimate.h"
#include "dynslice/support/error.h"
#include "dynslice/support/files.h"
#include "dynslice/support/hash.h"

namespace dynslice::cli {
namespace {

namespace fs = std::filesystem;

// Shares of the layers at the lower bits.
constexpr int kSteps = 10;
// What "before quality falls" is taken to mean: perplexity above that of the higher bits by this much.
constexpr double kTolerance = 0.05;

struct Curve {
  std::string name;
  std::string order;  // as --order has it
  uint64_t seed = 0;
  std::vector<double> shares = {}, perplexities = {};
  std::vector<std::vector<double>> accuracies = {};  // of every share and task
};

// lim before its reverse.
std::vector<Curve> curves_to_draw() {
  return {{"lim", "lim", 0},
          {"zd", "zd", 0},
          {"random, seed 0", "random", 0},
          {"random, seed 1", "random", 1},
          {"random, seed 2", "random", 2},
          {"reverse", "reverse", 0}};
}

// The largest share up to which no measured perplexity was more than the tolerance above the first.
double share_within(const Curve& curve) {
  double share = 0;
  for (size_t i = 0; i < curve.shares.size(); ++i) {
    if (!(curve.perplexities[i] <= (1 + kTolerance) * curve.perplexities.front())) break;
    share = curve.shares[i];
  }
  return share;
}

// Measures all points of all curves in one walk, and asks each of their models the questions, if there are any.
void measure(const Quantizing& in, const FormatRule& rule, std::vector<Curve>& curves, const TokenWindows& measured,
             const SweepTasks* tasks, Journal& journal, ProgressSink& progress) {
  const std::vector<int> levels = levels_of(in.options);
  std::vector<std::vector<int>> plans;
  const auto layers = static_cast<double>(in.config().num_layers());
  std::vector<int64_t> by_lim;
  for (Curve& curve : curves) {
    const JournalPhase scoring(journal, "scoring for " + curve.name);
    std::vector<int64_t> order =
        curve.order == "reverse" ? std::vector<int64_t>(by_lim.rbegin(), by_lim.rend())
                                 : rank_layers(in, parse_ranking(curve.order), curve.seed, scoring, progress).layers;
    if (curve.order == "lim") by_lim = order;
    for (int step = 0; step <= kSteps; ++step) {
      const double share = static_cast<double>(step) / kSteps;
      plans.push_back(bits_by_share(order, levels, {share}));
      curve.shares.push_back(static_cast<double>(std::ranges::count(plans.back(), levels.back())) / layers);
    }
  }
  const JournalPhase phase(journal, "sweep");
  std::vector<double> losses;
  if (const auto known = phase.result()) {
    losses = known->get<std::vector<double>>();
  } else {
    const LayerWalk walk(in.checkpoint, in.compute, measured.length, progress);
    const TrialQuantizer quantizer{rule, in.by_gptq() ? in.calibration : nullptr, in.gptq()};
    losses = plan_losses(walk, measured, quantizer, plans, phase);
    phase.finish(losses);
  }
  std::vector<std::vector<double>> accuracies(plans.size());
  if (tasks != nullptr) {
    const auto phase_of = [&](const std::string& name) { return JournalPhase(journal, name); };
    accuracies = tasks->accuracies(in, rule, measured, plans, phase_of, progress);
  }
  size_t next = 0;
  for (Curve& curve : curves) {
    for (size_t i = 0; i < curve.shares.size(); ++i, ++next) {
      curve.perplexities.push_back(std::exp(losses[next]));
      curve.accuracies.push_back(accuracies[next]);
    }
  }
}

OrderedJson describe(const std::vector<Curve>& curves, const std::vector<std::string>& tasks) {
  OrderedJson json = OrderedJson::array();
  for (const Curve& curve : curves) {
    json.push_back({{"order", curve.order},
                    {"seed", curve.order == "random" ? OrderedJson(curve.seed) : OrderedJson(nullptr)},
                    {"low_share", curve.shares},
                    {"perplexity", curve.perplexities},
                    {"low_share_within_5_percent", share_within(curve)}});
    for (size_t task = 0; task < tasks.size(); ++task) {
      for (const auto& accuracies : curve.accuracies) json.back()["accuracy"][tasks[task]].push_back(accuracies[task]);
    }
  }
  return json;
}

// `cell` gives the text of a point of a curve.
template <typename Cell>
void print_points(const std::vector<Curve>& curves, const std::string& title, const Cell& cell) {
  std::vector<std::string> header = {title};
  for (const Curve& curve : curves) header.push_back(curve.name);
  std::vector<std::vector<std::string>> rows;
  for (size_t i = 0; i < curves.front().shares.size(); ++i) {
    rows.push_back({format_percent(curves.front().shares[i])});
    for (const Curve& curve : curves) rows.back().push_back(cell(curve, i));
  }
  print_table(header, rows);
}

void print(const std::vector<Curve>& curves, const std::vector<int>& levels, const std::vector<std::string>& tasks) {
  const std::string share = "layers at " + std::to_string(levels.back()) + " bits";
  print_points(curves, share, [](const Curve& curve, size_t i) { return format_fixed(curve.perplexities[i], 2); });
  for (size_t task = 0; task < tasks.size(); ++task) {
    std::cout << "\nAccuracy, " << tasks[task] << ", %:\n";
    print_points(curves, share,
                 [task](const Curve& curve, size_t i) { return format_fixed(100 * curve.accuracies[i][task], 1); });
  }
  std::cout << "\nUp to 5 % above the perplexity of " << levels.front() << " bits everywhere:";
  for (size_t i = 0; i < curves.size(); ++i)
    std::cout << (i == 0 ? " " : "; ") << curves[i].name << ' ' << format_percent(share_within(curves[i]), 0);
  std::cout << " of the layers.\n";
}

fs::path picture_of(const fs::path& file) { return fs::path(file).replace_extension(".svg"); }
fs::path picture_of(const fs::path& file, const std::string& task) {
  return fs::path(file).replace_extension("." + task + ".svg");
}

// `value` gives the height of a point of a curve.
template <typename Value>
void draw(const std::vector<Curve>& curves, const std::string& title, const std::string& height, const fs::path& file,
          const Value& value) {
  std::vector<ChartLine> lines;
  for (const Curve& curve : curves) {
    lines.push_back({curve.name, {}});
    for (size_t i = 0; i < curve.shares.size(); ++i)
      lines.back().points.emplace_back(100 * curve.shares[i], value(curve, i));
  }
  const bool is_logarithmic = height == "perplexity";
  write_file_atomically(file,
                        line_chart_svg(lines, {title, "% of the layers at the lower bits", height, is_logarithmic}));
}

}  // namespace

void run_sweep(const QuantizeRequest& options, TerminalProgress& progress) {
  const auto start = std::chrono::steady_clock::now();
  const std::vector<int> levels = levels_of(options);
  if (levels.size() != 2)
    throw_error(ErrorKind::kUsage, "--sweep needs two levels, such as --bits 8,4; found ", levels.size());
  if (picture_of(options.sweep) == fs::path(options.sweep))
    throw_error(ErrorKind::kUsage, "--sweep ", options.sweep, ": is the JSON file; the picture goes beside it as .svg");
  for (const fs::path& file : {fs::path(options.sweep), picture_of(options.sweep)}) check_output_file(file);
  ComputeOptions compute = resolve_compute(options.common.device, options.common.dtype);
  const auto checkpoint = open_model(options.common, progress);
  TextOptions wanted = options.calibration;
  if (wanted.samples == 0) wanted.samples = 32;
  const LoadedText text = load_windows(wanted, TextUse::kCalibration, options.common, *checkpoint, progress);
  if (text.windows.length < 2)
    throw_error(ErrorKind::kUsage, "--seqlen ", text.windows.length,
                ": a window of one token has no next one to measure");
  TextOptions measuring = options.measured;
  measuring.seqlen = text.windows.length;
  const LoadedText measured = load_windows(measuring, TextUse::kEvaluation, options.common, *checkpoint, progress);
  const Quantizing in{options, compute, *checkpoint, &text.windows};
  const FormatRule rule = format_rule(in);
  std::optional<SweepTasks> tasks;
  if (!options.tasks.empty()) tasks.emplace(options, *checkpoint, progress);
  const std::vector<std::string> task_names = tasks ? tasks->names() : std::vector<std::string>{};
  for (const std::string& task : task_names) check_output_file(picture_of(options.sweep, task));
  std::vector<Curve> curves = curves_to_draw();
  const auto resources =
      prepare_or_show(options.common, *checkpoint, compute,
                      {"quantize --sweep", [&](const ComputeOptions& with, int64_t) {
                         const auto plans = static_cast<int64_t>(curves.size()) * (kSteps + 1);
                         const ResourceEstimate losses = estimate_plan_losses(
                             *checkpoint, with, in.by_gptq() ? amount_of(text.windows) : TextAmount{},
                             amount_of(measured.windows), {plans, 1, static_cast<double>(plans)});
                         return tasks ? losses + tasks->estimate(in, with, plans) : losses;
                       }});
  if (!resources) return;
  compute = resources->compute;

  const OrderedJson run_description = describe_run(options.common, compute, *checkpoint);
  OrderedJson fingerprints = fingerprint(options.common, compute, *checkpoint, &text, wanted);
  Checksum ids;
  ids.update(measured.windows.ids.data(), measured.windows.ids.size() * sizeof(int32_t));
  fingerprints["measured token ids"] = ids.hex();
  if (tasks) tasks->add_fingerprint(fingerprints);
  const auto journal = open_journal(options.common, options.sweep, fingerprints, run_description);
  with_journal(*journal, options.common, [&] {
    measure(in, rule, curves, measured.windows, tasks ? &*tasks : nullptr, *journal, progress);
    OrderedJson json;
    json["kind"] = "dynslice.quant_sweep";
    json["run"] = journal->job();
    json["bits"] = levels;
    json["method"] = options.method;
    json["curves"] = describe(curves, task_names);
    json["calibration"] = dynslice::describe(text, wanted);
    json["measured_on"] = dynslice::describe(measured, measuring);
    write_file_atomically(options.sweep, to_text(json));
    const std::string title = model_name(options.common, *checkpoint) + ", " + std::to_string(levels.front()) + " to " +
                              std::to_string(levels.back()) + " bits, " + options.method;
    draw(curves, title, "perplexity", picture_of(options.sweep),
         [](const Curve& curve, size_t i) { return curve.perplexities[i]; });
    for (size_t task = 0; task < task_names.size(); ++task) {
      draw(curves, title, "accuracy on " + task_names[task] + ", %", picture_of(options.sweep, task_names[task]),
           [task](const Curve& curve, size_t i) { return 100 * curve.accuracies[i][task]; });
    }
    const double seconds =
        journal->earlier_seconds() + std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (options.common.json) {
      json["wall_seconds"] = seconds;
      add_peaks(json, peak_memory(compute));
      std::cout << to_text(json);
      return;
    }
    print(curves, levels, task_names);
    std::cout << format_duration(seconds) << ", peak memory " << format_bytes(peak_rss_bytes()) << ".\nWritten to "
              << options.sweep << " and " << picture_of(options.sweep).string() << ".\n";
  });
  journal->remove_files();
}

}  // namespace dynslice::cli
