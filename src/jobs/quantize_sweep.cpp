#include "jobs/quantize_sweep.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <utility>

#include "dynslice/jobs/checkpoint_output.h"
#include "dynslice/jobs/inputs.h"
#include "dynslice/jobs/journaling.h"
#include "dynslice/quantize/estimate.h"
#include "dynslice/report/line_chart.h"
#include "dynslice/resources/estimate.h"
#include "dynslice/support/error.h"
#include "dynslice/support/files.h"
#include "dynslice/support/hash.h"
#include "jobs/quantizing.h"
#include "jobs/sweep_tasks.h"

namespace dynslice {
namespace {

namespace fs = std::filesystem;

// Shares of the layers at the lower bits.
constexpr int kSweepSteps = 10;
// What "before quality falls" is taken to mean: perplexity above that of the higher bits by this much.
constexpr double kTolerance = 0.05;

// lim before its reverse.
std::vector<SweepCurve> curves_to_draw() {
  return {{"lim", "lim", 0},
          {"zd", "zd", 0},
          {"random, seed 0", "random", 0},
          {"random, seed 1", "random", 1},
          {"random, seed 2", "random", 2},
          {"reverse", "reverse", 0}};
}

// Measures all points of all curves in one walk, and asks each of their models the questions, if there are any.
void measure_curves(const Quantizing& in, const FormatRule& rule, std::vector<SweepCurve>& curves,
                    const TokenWindows& measured, const SweepTasks* tasks, Journal& journal, ProgressSink& progress) {
  const std::vector<int> levels = levels_of(in.options);
  std::vector<std::vector<int>> plans;
  const auto layers = static_cast<double>(in.config().num_layers());
  std::vector<int64_t> by_lim;
  for (SweepCurve& curve : curves) {
    const JournalPhase scoring(journal, "scoring for " + curve.name);
    std::vector<int64_t> order =
        curve.order == "reverse" ? std::vector<int64_t>(by_lim.rbegin(), by_lim.rend())
                                 : rank_layers(in, parse_ranking(curve.order), curve.seed, scoring, progress).layers;
    if (curve.order == "lim") by_lim = order;
    for (int step = 0; step <= kSweepSteps; ++step) {
      const double share = static_cast<double>(step) / kSweepSteps;
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
  for (SweepCurve& curve : curves) {
    for (size_t i = 0; i < curve.shares.size(); ++i, ++next) {
      curve.perplexities.push_back(std::exp(losses[next]));
      curve.accuracies.push_back(accuracies[next]);
    }
  }
}

OrderedJson describe_curves(const std::vector<SweepCurve>& curves, const std::vector<std::string>& tasks) {
  OrderedJson json = OrderedJson::array();
  for (const SweepCurve& curve : curves) {
    json.push_back({{"order", curve.order},
                    {"seed", curve.order == "random" ? OrderedJson(curve.seed) : OrderedJson(nullptr)},
                    {"low_share", curve.shares},
                    {"perplexity", curve.perplexities},
                    {"low_share_within_5_percent", curve.share_within_tolerance()}});
    for (size_t task = 0; task < tasks.size(); ++task) {
      for (const auto& accuracies : curve.accuracies) json.back()["accuracy"][tasks[task]].push_back(accuracies[task]);
    }
  }
  return json;
}

fs::path picture_of(const fs::path& file) { return fs::path(file).replace_extension(".svg"); }
fs::path picture_of(const fs::path& file, const std::string& task) {
  return fs::path(file).replace_extension("." + task + ".svg");
}

// `value` gives the height of a point of a curve.
template <typename Value>
void draw_curves(const std::vector<SweepCurve>& curves, const std::string& title, const std::string& height,
                 const fs::path& file, const Value& value) {
  std::vector<ChartLine> lines;
  for (const SweepCurve& curve : curves) {
    lines.push_back({curve.name, {}});
    for (size_t i = 0; i < curve.shares.size(); ++i)
      lines.back().points.emplace_back(100 * curve.shares[i], value(curve, i));
  }
  const bool is_logarithmic = height == "perplexity";
  write_file_atomically(file,
                        line_chart_svg(lines, {title, "% of the layers at the lower bits", height, is_logarithmic}));
}

// The two texts of a sweep, in windows of one length.
struct SweepTexts {
  TextOptions calibration, measuring;  // as resolved
  LoadedText calibrated, measured;
};

SweepTexts load_sweep_texts(const QuantizeRequest& options, const Checkpoint& checkpoint, ProgressSink& progress) {
  TextOptions calibration = options.calibration;
  if (calibration.samples == 0) calibration.samples = 32;
  LoadedText text = load_windows(calibration, TextUse::kCalibration, options.common, checkpoint, progress);
  if (text.windows.length < 2)
    throw_error(ErrorKind::kUsage, "--seqlen ", text.windows.length,
                ": a window of one token has no next one to measure");
  TextOptions measuring = options.measured;
  measuring.seqlen = text.windows.length;
  LoadedText measured = load_windows(measuring, TextUse::kEvaluation, options.common, checkpoint, progress);
  return {std::move(calibration), std::move(measuring), std::move(text), std::move(measured)};
}

void check_sweep_options(const QuantizeRequest& options) {
  const size_t levels = levels_of(options).size();
  if (levels != 2) throw_error(ErrorKind::kUsage, "--sweep needs two levels, such as --bits 8,4; found ", levels);
  if (picture_of(options.sweep) == fs::path(options.sweep))
    throw_error(ErrorKind::kUsage, "--sweep ", options.sweep, ": is the JSON file; the picture goes beside it as .svg");
  for (const fs::path& file : {fs::path(options.sweep), picture_of(options.sweep)}) check_output_file(file);
}

OrderedJson sweep_fingerprint(const Quantizing& in, const SweepTexts& texts, const std::optional<SweepTasks>& tasks) {
  OrderedJson json = fingerprint(in.options.common, in.compute, in.checkpoint, &texts.calibrated, texts.calibration);
  Checksum ids;
  ids.update(texts.measured.windows.ids.data(), texts.measured.windows.ids.size() * sizeof(int32_t));
  json["measured token ids"] = ids.hex();
  if (tasks) tasks->add_fingerprint(json);
  return json;
}

// The JSON file and its pictures.
void write_sweep(const Quantizing& in, const SweepTexts& texts, QuantSweep& sweep, const OrderedJson& run_description) {
  const QuantizeRequest& options = in.options;
  OrderedJson& json = sweep.record;
  json["kind"] = "dynslice.quant_sweep";
  json["run"] = run_description;
  json["bits"] = sweep.levels;
  json["method"] = name_of(options.method);
  json["curves"] = describe_curves(sweep.curves, sweep.tasks);
  json["calibration"] = describe(texts.calibrated, texts.calibration);
  json["measured_on"] = describe(texts.measured, texts.measuring);
  write_file_atomically(options.sweep, to_text(json));
  const std::string title = model_name(options.common, in.checkpoint) + ", " + std::to_string(sweep.levels.front()) +
                            " to " + std::to_string(sweep.levels.back()) + " bits, " + name_of(options.method);
  sweep.output = options.sweep;
  sweep.picture = picture_of(options.sweep);
  draw_curves(sweep.curves, title, "perplexity", sweep.picture,
              [](const SweepCurve& curve, size_t i) { return curve.perplexities[i]; });
  for (size_t task = 0; task < sweep.tasks.size(); ++task) {
    draw_curves(sweep.curves, title, "accuracy on " + sweep.tasks[task] + ", %",
                picture_of(options.sweep, sweep.tasks[task]),
                [task](const SweepCurve& curve, size_t i) { return 100 * curve.accuracies[i][task]; });
  }
}

}  // namespace

double SweepCurve::share_within_tolerance() const {
  double share = 0;
  for (size_t i = 0; i < shares.size(); ++i) {
    if (!(perplexities[i] <= (1 + kTolerance) * perplexities.front())) break;
    share = shares[i];
  }
  return share;
}

Outcome<QuantizeResult> run_sweep(const QuantizeRequest& options, ProgressSink& progress) {
  const auto start = std::chrono::steady_clock::now();
  check_sweep_options(options);
  ComputeOptions compute = resolve_compute(options.common.device, options.common.dtype);
  const auto checkpoint = open_model(options.common, progress);
  const SweepTexts texts = load_sweep_texts(options, *checkpoint, progress);
  const Quantizing in{options, compute, *checkpoint, &texts.calibrated.windows};
  const FormatRule rule = format_rule(in);
  std::optional<SweepTasks> tasks;
  if (!options.tasks.empty()) tasks.emplace(options, *checkpoint, progress);
  QuantSweep sweep;
  sweep.levels = levels_of(options);
  if (tasks) sweep.tasks = tasks->names();
  for (const std::string& task : sweep.tasks) check_output_file(picture_of(options.sweep, task));
  sweep.curves = curves_to_draw();
  const auto estimate = [&](const ComputeOptions& with, int64_t) {
    const auto plans = static_cast<int64_t>(sweep.curves.size()) * (kSweepSteps + 1);
    const ResourceEstimate losses =
        estimate_plan_losses(*checkpoint, with, in.by_gptq() ? amount_of(texts.calibrated.windows) : TextAmount{},
                             amount_of(texts.measured.windows), {plans, 1, static_cast<double>(plans)});
    return tasks ? losses + tasks->estimate(in, with, plans) : losses;
  };
  auto prepared = prepare(options.common, *checkpoint, compute, {"quantize --sweep", estimate});
  if (auto* dry_run = std::get_if<DryRun>(&prepared)) return std::move(*dry_run);
  compute = std::get<ResourcePlan>(prepared).compute;

  const auto journal = open_journal(options.common, options.sweep, sweep_fingerprint(in, texts, tasks),
                                    describe_run(options.common, compute, *checkpoint));
  with_journal(*journal, options.common, [&] {
    measure_curves(in, rule, sweep.curves, texts.measured.windows, tasks ? &*tasks : nullptr, *journal, progress);
    write_sweep(in, texts, sweep, journal->job());
    sweep.seconds = journal->earlier_seconds() + seconds_since(start);
    sweep.peak = peak_memory(compute);
  });
  journal->remove_files();
  return QuantizeResult(std::move(sweep));
}

}  // namespace dynslice
