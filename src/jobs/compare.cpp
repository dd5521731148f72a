#include "dynslice/jobs/compare.h"

#include <algorithm>
#include <chrono>
#include <optional>
#include <utility>

#include "dynslice/evaluate/perplexity.h"
#include "dynslice/jobs/checkpoint_output.h"
#include "dynslice/jobs/comparison.h"
#include "dynslice/jobs/inputs.h"
#include "dynslice/jobs/journaling.h"
#include "dynslice/resources/estimate.h"
#include "dynslice/support/environment.h"
#include "dynslice/support/error.h"
#include "dynslice/support/files.h"
#include "dynslice/support/log.h"
#include "dynslice/walk/memory_plan.h"
#include "jobs/tasks.h"

namespace dynslice {
namespace {

// As `eval` has it: with tasks only when it is asked for.
bool compares_perplexity(const CompareRequest& options) {
  return options.tasks.empty() || options.kl || options.common.is_given("--ppl");
}

std::vector<ComparedModel> open_compared(const CompareRequest& options, ProgressSink& progress) {
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

// What is not known yet, all of it one after the other.
DryRun estimate_missing(const CompareRequest& options, const Comparison& comparison,
                        const std::vector<Measurement*>& missing, ProgressSink& progress) {
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
  return std::get<DryRun>(
      prepare(options.common, *comparison.models.front().checkpoint, comparison.compute, {"compare", estimate, turn}));
}

// The plan of one measurement, or what a rehearsal says. Two models in memory may be too much where walking through
// them is not.
std::variant<ResourcePlan, DryRun> prepare_measurement(const CommonOptions& common, const Measurement& measurement,
                                                       const ComputeOptions& compute) {
  const Checkpoint& checkpoint = *measurement.model().checkpoint;
  const Job job{"compare", [&](const ComputeOptions& with, int64_t bytes) { return measurement.estimate(with, bytes); },
                measurement.walks() ? default_turn_bytes(checkpoint, compute.device) : 0};
  try {
    return prepare(common, checkpoint, compute, job);
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
    if (!measurement->walks()) prepare_measurement(rehearsal, *measurement, comparison.compute);
  }
}

void measure_one(const CompareRequest& options, const Comparison& comparison, Measurement& measurement,
                 const ResultCache& cache, ProgressSink& progress) {
  if (measurement.find(cache)) return;  // the same model twice
  log(LogLevel::kInfo, "Measuring the " + measurement.title());
  measurement.open(progress);
  const auto prepared = prepare_measurement(options.common, measurement, comparison.compute);
  measurement.run(std::get<ResourcePlan>(prepared), cache, progress);
  measurement.close();
}

// Measures what is missing; what is done is kept when it ends early.
void measure_missing(const CompareRequest& options, const Comparison& comparison,
                     const std::vector<Measurement*>& missing, const ResultCache& cache, ProgressSink& progress) {
  FaultPoint fault = fault_point();
  size_t done = 0;
  try {
    for (Measurement* measurement : missing) {
      measure_one(options, comparison, *measurement, cache, progress);
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
}

// All measurements; with dry_run nothing is measured.
std::optional<DryRun> measure_all(const CompareRequest& options, Comparison& comparison, const ResultCache& cache,
                                  ProgressSink& progress) {
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
  if (options.common.dry_run) return estimate_missing(options, comparison, missing, progress);
  check_speed(options, comparison, missing);
  measure_missing(options, comparison, missing, cache, progress);
  return std::nullopt;
}

std::string describe_interval(const CompareRequest& options, const ComparedModel& first) {
  return "Differences are from " + first.name + ", with 95 % intervals of a paired bootstrap (" +
         std::to_string(options.resamples) + " resamples of windows and questions).";
}

// Of the text, which every model tokenizes by itself.
OrderedJson describe_source(const TextSource& source, const CompareRequest& options) {
  return {{"spec", options.text.spec},    {"name", source.name},     {"split", source.split},
          {"file", source.path.string()}, {"sha256", source.sha256}, {"protocol", name_of(options.protocol)}};
}

// The figures, in the result and in the files that are wanted.
CompareResult report_figures(const CompareRequest& options, const Comparison& comparison) {
  const auto figures = figures_of(comparison);
  CompareResult result;
  result.table = table_of(comparison, figures);
  result.explanation = describe_interval(options, comparison.models.front());
  if (!options.csv.empty()) write_file_atomically(options.csv, csv_of(comparison, figures));
  if (!options.markdown.empty())
    write_file_atomically(options.markdown, markdown_of(result.table) + "\n" + result.explanation + "\n");
  result.compute = comparison.compute;
  result.models = to_json(comparison, figures);
  result.resamples = options.resamples;
  result.seed = options.seed;
  result.has_tasks = !comparison.questions.empty();
  result.run_description = describe_run(options.common, comparison.compute, *comparison.models.front().checkpoint);
  return result;
}

}  // namespace

OrderedJson to_json(const CompareResult& result) {
  OrderedJson json;
  json["models"] = result.models;
  json["bootstrap"] = {{"resamples", result.resamples}, {"seed", result.seed}, {"level", 0.95}};
  if (result.has_tasks) json["tasks_of"] = kHarnessVersion;
  add_cost(json, result.seconds, result.peak);
  json["provenance"] = result.run_description;
  if (!result.text.is_null()) json["provenance"]["text"] = result.text;
  return json;
}

Outcome<CompareResult> run(const CompareRequest& options, ProgressSink& progress) {
  const auto start = std::chrono::steady_clock::now();
  for (const std::string& file : {options.csv, options.markdown}) {
    if (!file.empty()) check_output_file(file);
  }
  Comparison comparison{
      options, resolve_compute(options.common.device, options.common.dtype), program_hash(), "", {}, {}, {}};
  if (!options.tasks.empty()) comparison.selection = tasks_named(options.tasks);
  comparison.models = open_compared(options, progress);
  OrderedJson text;
  if (compares_perplexity(options)) {
    const TextSource source = load_text(options.text.spec, TextUse::kEvaluation, options.common.data_dir, progress);
    comparison.text_sha256 = source.sha256;
    text = describe_source(source, options);
  }
  comparison.questions =
      load_questions(comparison.selection, {options.limit, options.examples}, options.common.data_dir, progress);
  const ResultCache cache(options.no_cache ? std::filesystem::path() : cache_folder() / "results");
  for (ComparedModel& model : comparison.models) model.contents = contents_of(*model.checkpoint, cache, progress);
  if (auto dry_run = measure_all(options, comparison, cache, progress)) return std::move(*dry_run);
  const double seconds = seconds_since(start);
  CompareResult result = report_figures(options, comparison);
  result.text = std::move(text);
  result.seconds = seconds;
  result.peak = peak_memory(comparison.compute);
  return result;
}

}  // namespace dynslice
