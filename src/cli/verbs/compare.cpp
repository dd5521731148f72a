#include <algorithm>
#include <chrono>
#include <iostream>

#include "cli/verbs/eval_tasks.h"
#include "cli/verbs/prepare_and_show.h"
#include "cli/verbs/verbs.h"
#include "dynslice/jobs/checkpoint_output.h"
#include "dynslice/jobs/comparison.h"
#include "dynslice/jobs/evaluating.h"
#include "dynslice/jobs/journaling.h"
#include "dynslice/jobs/prepare.h"
#include "dynslice/jobs/tasks.h"
#include "dynslice/resources/estimate.h"
#include "dynslice/support/environment.h"
#include "dynslice/support/error.h"
#include "dynslice/support/files.h"
#include "dynslice/support/log.h"
#include "dynslice/walk/memory_plan.h"

namespace dynslice::cli {
namespace {

// As `eval` has it: with tasks only when it is asked for.
bool asks_perplexity(const CompareRequest& options) {
  return options.tasks.empty() || options.kl || options.common.is_given("--ppl");
}

std::vector<ComparedModel> open_models(const CompareRequest& options, TerminalProgress& progress) {
  std::vector<ComparedModel> models;
  std::vector<std::string> all{options.common.model};
  all.insert(all.end(), options.others.begin(), options.others.end());
  for (const std::string& typed : all) {
    CommonOptions common = options.common;
    common.model = typed;
    ComparedModel& model = models.emplace_back();
    model.checkpoint = open_model(common, progress);
    model.typed = typed.empty() ? model.checkpoint->path().string() : typed;
    model.name = model_name(common, *model.checkpoint);
  }
  // What two models are called is what was typed for either.
  std::vector<std::string> names;
  for (const ComparedModel& model : models) names.push_back(model.name);
  for (ComparedModel& model : models) {
    if (std::ranges::count(names, model.name) > 1) model.name = model.typed;
  }
  return models;
}

// The estimate of what is not known yet, all of it one after the other.
bool plan_dry_run(const CompareRequest& options, const Comparison& comparison, const std::vector<Measurement*>& missing,
                  TerminalProgress& progress) {
  int64_t turn = 0;
  for (Measurement* measurement : missing) {
    measurement->open(progress);
    if (measurement->walks())
      turn = std::max(turn, default_turn_bytes(*measurement->model().checkpoint, comparison.compute.device));
  }
  const auto estimate = [&](const ComputeOptions& compute, int64_t stream_bytes) {
    ResourceEstimate sum;
    for (const Measurement* measurement : missing) sum = sum + measurement->estimate(compute, stream_bytes);
    return sum;
  };
  return prepare_or_show(options.common, *comparison.models.front().checkpoint, comparison.compute,
                         {"compare", estimate, turn})
      .has_value();
}

// The plan of one measurement. Two models in memory may be too much where walking through them is not.
std::optional<ResourcePlan> plan_of(const CommonOptions& common, const Measurement& measurement,
                                    const ComputeOptions& compute) {
  const Checkpoint& checkpoint = *measurement.model().checkpoint;
  const Job job{"compare", [&](const ComputeOptions& with, int64_t bytes) { return measurement.estimate(with, bytes); },
                measurement.walks() ? default_turn_bytes(checkpoint, compute.device) : 0};
  try {
    return prepare_or_show(common, checkpoint, compute, job);
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kOutOfResources || measurement.walks()) throw;
    throw Error(error.kind(), measurement.title() + ": " + error.what() + "; or leave speed out with --no-speed");
  }
}

// Whether speed can be measured at all is found out before anything else is.
void check_speed(const CompareRequest& options, const Comparison& comparison,
                 const std::vector<Measurement*>& missing) {
  CommonOptions rehearsal = options.common;
  rehearsal.rehearsal = true;
  for (const Measurement* measurement : missing) {
    if (!measurement->walks()) plan_of(rehearsal, *measurement, comparison.compute);
  }
}

void measure(const CompareRequest& options, const Comparison& comparison, Measurement& measurement,
             const ResultCache& cache, TerminalProgress& progress) {
  if (measurement.find(cache)) return;  // the same model twice
  log(LogLevel::kInfo, "Measuring the " + measurement.title());
  measurement.open(progress);
  const auto plan = plan_of(options.common, measurement, comparison.compute);
  measurement.run(*plan, cache, progress);
  measurement.close();
}

// All measurements; false after a dry run.
bool measure_all(const CompareRequest& options, Comparison& comparison, const ResultCache& cache,
                 TerminalProgress& progress) {
  const auto measurements = measurements_of(comparison);
  std::vector<Measurement*> missing;
  for (const auto& measurement : measurements) {
    if (measurement->find(cache)) {
      measurement->model().kept.push_back(measurement->title());
    } else {
      missing.push_back(measurement.get());
    }
  }
  if (missing.size() < measurements.size()) {
    log(LogLevel::kInfo, std::to_string(measurements.size() - missing.size()) + " of " +
                             std::to_string(measurements.size()) + " measurements are there from earlier runs");
  }
  if (options.common.dry_run) return plan_dry_run(options, comparison, missing, progress);
  check_speed(options, comparison, missing);
  FaultPoint fault = fault_point();
  size_t done = 0;
  try {
    for (Measurement* measurement : missing) {
      measure(options, comparison, *measurement, cache, progress);
      ++done;
      fault.begin("measuring");
      fault.reached(SaveMoment::kSaved);
    }
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kInterrupted || done == 0 || !cache.is_enabled()) throw;
    throw Error(error.kind(), std::string(error.what()) + "; " + std::to_string(done) + " of " +
                                  std::to_string(missing.size()) +
                                  " measurements are kept: the same command goes on from there");
  }
  return true;
}

std::string describe_interval(const CompareRequest& options, const ComparedModel& first) {
  return "Differences are from " + first.name + ", with 95 % intervals of a paired bootstrap (" +
         std::to_string(options.resamples) + " resamples of windows and questions).";
}

void report(const CompareRequest& options, const Comparison& comparison, const OrderedJson& text, double seconds) {
  const auto figures = figures_of(comparison);
  const FigureTable table = table_of(comparison, figures);
  if (!options.csv.empty()) write_file_atomically(options.csv, csv_of(comparison, figures));
  if (!options.markdown.empty()) {
    write_file_atomically(options.markdown,
                          markdown_of(table) + "\n" + describe_interval(options, comparison.models.front()) + "\n");
  }
  if (!options.common.json) {
    print_table(table.header, table.rows);
    std::cout << "\n"
              << describe_interval(options, comparison.models.front()) << "\n"
              << dtype_name(comparison.compute.dtype) << " on " << comparison.compute.device.str() << ", "
              << format_duration(seconds) << ", peak memory " << format_bytes(peak_rss_bytes()) << ".\n";
    return;
  }
  OrderedJson json;
  json["models"] = to_json(comparison, figures);
  json["bootstrap"] = {{"resamples", options.resamples}, {"seed", options.seed}, {"level", 0.95}};
  if (!comparison.questions.empty()) json["tasks_of"] = kHarnessVersion;
  json["wall_seconds"] = seconds;
  add_peaks(json, peak_memory(comparison.compute));
  json["provenance"] = describe_run(options.common, comparison.compute, *comparison.models.front().checkpoint);
  if (!text.is_null()) json["provenance"]["text"] = text;
  std::cout << to_text(json);
}

// Of the text, which every model tokenizes by itself.
OrderedJson describe_source(const TextSource& source, const CompareRequest& options) {
  return {{"spec", options.text.spec},    {"name", source.name},     {"split", source.split},
          {"file", source.path.string()}, {"sha256", source.sha256}, {"protocol", options.protocol}};
}

}  // namespace

void run(const CompareRequest& options, TerminalProgress& progress) {
  const auto start = std::chrono::steady_clock::now();
  parse_protocol(options.protocol);
  for (const std::string& file : {options.csv, options.markdown}) {
    if (!file.empty()) check_output_file(file);
  }
  Comparison comparison{
      options, resolve_compute(options.common.device, options.common.dtype), program_hash(), "", {}, {}, {}};
  if (!options.tasks.empty()) comparison.selection = tasks_named(options.tasks);
  comparison.models = open_models(options, progress);
  OrderedJson text;
  if (asks_perplexity(options)) {
    const TextSource source = load_text(options.text.spec, TextUse::kEvaluation, options.common.data_dir, progress);
    comparison.text_sha256 = source.sha256;
    text = describe_source(source, options);
  }
  comparison.questions =
      load_questions(comparison.selection, {options.limit, options.examples}, options.common.data_dir, progress);
  const ResultCache cache(options.no_cache ? std::filesystem::path() : cache_folder() / "results");
  for (ComparedModel& model : comparison.models) model.contents = contents_of(*model.checkpoint, cache, progress);
  if (!measure_all(options, comparison, cache, progress)) return;
  report(options, comparison, text, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
}

}  // namespace dynslice::cli
