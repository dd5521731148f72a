// What `dynslice compare` measures: models, measurements of them that are kept in a cache, and the figures that come of
// the results.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "dynslice/evaluate/statistics.h"
#include "dynslice/evaluate/tasks.h"
#include "dynslice/jobs/inputs.h"
#include "dynslice/jobs/requests.h"
#include "dynslice/resources/estimate.h"
#include "dynslice/support/result_cache.h"
#include "dynslice/walk/memory_plan.h"

namespace dynslice {

// One of the models. Results are JSON, whether they were measured now or kept: both are reported alike.
struct ComparedModel {
  std::string typed;  // as given
  std::string name;   // short, of this model alone
  std::unique_ptr<Checkpoint> checkpoint;
  std::string contents;           // hash of its weights, configuration and tokenizer
  OrderedJson perplexity;         // null when it was not measured
  OrderedJson divergence;         // from the first model, and both perplexities
  OrderedJson speed;              // of this model and of the first, in turns
  OrderedJson tasks;              // outcomes by task
  std::vector<std::string> kept;  // measurements that were not done now
};

// What all measurements share.
struct Comparison {
  const CompareRequest& options;
  ComputeOptions compute;   // as asked
  std::string program;      // hash of the library that computes
  std::string text_sha256;  // of the text's file; empty when perplexity is not measured
  TaskSelection selection;  // empty without tasks
  std::vector<TaskQuestions> questions;
  std::vector<ComparedModel> models;  // the first is the one to compare with
};

// Something that is measured of one model, or of it and the first.
class Measurement {
 public:
  Measurement(Comparison& comparison, size_t model) : comparison_(comparison), index_(model) {}
  virtual ~Measurement() = default;

  [[nodiscard]] virtual std::string title() const = 0;  // "perplexity of NAME"
  // Takes the result from the cache; whether all of it was there.
  virtual bool find(const ResultCache& cache) = 0;
  // Reads and tokenizes what `estimate` and `run` need; `close` lets it go.
  virtual void open(ProgressSink& progress) = 0;
  virtual void close() = 0;
  [[nodiscard]] virtual ResourceEstimate estimate(const ComputeOptions& compute, int64_t stream_bytes) const = 0;
  [[nodiscard]] virtual bool walks() const { return true; }  // in turns of windows
  // Measures, and keeps the result.
  virtual void run(const ResourcePlan& plan, const ResultCache& cache, ProgressSink& progress) = 0;

  [[nodiscard]] ComparedModel& model() const { return comparison_.models[index_]; }

 protected:
  ComparedModel& first() const { return comparison_.models.front(); }
  const CompareRequest& options() const { return comparison_.options; }
  // What decides every result: the program, what it computes on, and the model.
  OrderedJson fingerprint(const std::string& measurement) const;

  Comparison& comparison_;
  size_t index_;
};

// All that the options ask for, in the order in which it is done.
[[nodiscard]] std::vector<std::unique_ptr<Measurement>> measurements_of(Comparison& comparison);

// Hash of a model's files: weights, config.json, tokenizer. Hashes of files that have not changed are kept.
[[nodiscard]] std::string contents_of(const Checkpoint& checkpoint, const ResultCache& cache, ProgressSink& progress);

// Of the library's file, which changes with every version of the code; of its version where there is no such file.
[[nodiscard]] std::string program_hash();

// ---- Figures ----

enum class FigureKind { kCount, kBytes, kPlain, kSmall, kPercent, kRate };

// A value of one model, and how it differs from the first model's.
struct Figure {
  std::string name;   // "tasks.piqa.acc": a key of the --json output
  std::string title;  // "piqa acc, %"
  FigureKind kind = FigureKind::kPlain;
  double value = 0;
  std::optional<double> standard_error;
  std::optional<double> difference;
  std::optional<Interval> interval;  // of the difference; not of figures without samples, nor of other tokens
  std::optional<double> ratio;       // to the first
};

// Of every model, in the order of the models. Figures of one name stand in the same order everywhere.
[[nodiscard]] std::vector<std::vector<Figure>> figures_of(const Comparison& comparison);

// Names of models, and one row a figure.
struct FigureTable {
  std::vector<std::string> header;
  std::vector<std::vector<std::string>> rows;
};
[[nodiscard]] FigureTable table_of(const Comparison& comparison, const std::vector<std::vector<Figure>>& figures);
[[nodiscard]] std::string csv_of(const Comparison& comparison, const std::vector<std::vector<Figure>>& figures);
[[nodiscard]] std::string markdown_of(const FigureTable& table);
// The list under "models".
[[nodiscard]] OrderedJson to_json(const Comparison& comparison, const std::vector<std::vector<Figure>>& figures);

}  // namespace dynslice
