// What `dynslice compare` measures of models: perplexity, divergence, tasks, speed.
#include <ATen/Parallel.h>
#include <torch/version.h>
#include <unistd.h>

#include <algorithm>
#include <array>

#include "dynslice/evaluate/divergence.h"
#include "dynslice/evaluate/estimate.h"
#include "dynslice/evaluate/speed.h"
#include "dynslice/evaluate/task_run.h"
#include "dynslice/jobs/comparison.h"
#include "dynslice/jobs/evaluating.h"
#include "dynslice/jobs/prepare.h"
#include "dynslice/resources/estimate.h"
#include "dynslice/support/hash.h"
#include "dynslice/tensor/dtype.h"
#include "dynslice/walk/memory_plan.h"
#include "dynslice/walk/walk_estimate.h"

namespace dynslice {
namespace {

// As eval --json has it, and what comparing needs: the losses of windows, and which tokens they are.
OrderedJson result_of(const Perplexity& perplexity, const ScoredText& scored, PerplexityProtocol protocol,
                      const TokenWindows& windows) {
  OrderedJson json = to_json(perplexity, scored, protocol);
  Checksum ids;
  ids.update(windows.ids.data(), windows.ids.size() * sizeof(int32_t));
  json["token_ids"] = ids.hex();
  json["mean_loss"] = perplexity.mean_loss;
  json["window_losses"] = perplexity.window_losses;
  return json;
}

// Measurements on windows of text.
class OnText : public Measurement {
 public:
  using Measurement::Measurement;

  void open(ProgressSink& progress) override {
    text_ = load_text_to_score(options().text, options().protocol, options().common, *model().checkpoint, progress);
  }

  void close() override { text_.reset(); }

 protected:
  // Which text in which windows. The model's own tokenizer, part of its contents, decides on the tokens.
  OrderedJson text_fingerprint(const std::string& measurement) const {
    OrderedJson json = fingerprint(measurement);
    const TextOptions& text = options().text;
    json["text sha256"] = comparison_.text_sha256;
    json["text"] = text.spec;
    json["range"] =
        text.range ? OrderedJson{text.range->begin, text.range->end ? OrderedJson(*text.range->end) : OrderedJson()}
                   : OrderedJson();
    json["samples"] = text.samples;
    json["seqlen"] = text.seqlen;
    json["shuffle"] = text.shuffle ? OrderedJson(*text.shuffle) : OrderedJson();
    json["protocol"] = name_of(options().protocol);
    return json;
  }

  PerplexityOptions measure_options(const ResourcePlan& plan) const {
    PerplexityOptions with = text_->measure;
    with.stream_bytes = plan.stream_bytes;
    return with;
  }

  const TokenWindows& windows() const { return text_->loaded.windows; }

  std::optional<TextToScore> text_;
};

class PerplexityMeasurement final : public OnText {
 public:
  using OnText::OnText;

  std::string title() const override { return "perplexity of " + model().name; }

  bool find(const ResultCache& cache) override {
    const auto kept = cache.find(text_fingerprint("perplexity"));
    if (kept) model().perplexity = *kept;
    return kept.has_value();
  }

  ResourceEstimate estimate(const ComputeOptions& compute, int64_t stream_bytes) const override {
    return estimate_perplexity(*model().checkpoint, compute, amount_of(windows()), stream_bytes);
  }

  void run(const ResourcePlan& plan, const ResultCache& cache, ProgressSink& progress) override {
    const Perplexity perplexity =
        measure_perplexity(*model().checkpoint, plan.compute, windows(), measure_options(plan), progress);
    model().perplexity = result_of(perplexity, text_->scored, options().protocol, windows());
    cache.keep(text_fingerprint("perplexity"), model().perplexity);
  }
};

// Gives both models' perplexities as well, from the same walk.
class DivergenceMeasurement final : public OnText {
 public:
  using OnText::OnText;

  std::string title() const override { return "divergence of " + model().name; }

  bool find(const ResultCache& cache) override {
    const auto kept = cache.find(pair_fingerprint());
    if (kept) take(*kept);
    return kept.has_value();
  }

  void open(ProgressSink& progress) override {
    OnText::open(progress);
    check_same_tokens(*first().checkpoint, *model().checkpoint, text_->loaded);
  }

  ResourceEstimate estimate(const ComputeOptions& compute, int64_t stream_bytes) const override {
    return estimate_divergence(*model().checkpoint, *first().checkpoint, compute, amount_of(windows()), stream_bytes);
  }

  void run(const ResourcePlan& plan, const ResultCache& cache, ProgressSink& progress) override {
    const Divergence divergence = measure_divergence(*model().checkpoint, *first().checkpoint, plan.compute, windows(),
                                                     measure_options(plan), progress);
    const OrderedJson result = {
        {"model", result_of(divergence.perplexity, text_->scored, options().protocol, windows())},
        {"first", result_of(divergence.reference, text_->scored, options().protocol, windows())},
        {"divergence", to_json(divergence)}};
    take(result);
    cache.keep(pair_fingerprint(), result);
  }

 private:
  OrderedJson pair_fingerprint() const {
    OrderedJson json = text_fingerprint("divergence");
    json["against"] = first().contents;
    return json;
  }

  void take(const OrderedJson& result) {
    model().perplexity = result.at("model");
    model().divergence = result.at("divergence");
    if (first().perplexity.is_null()) first().perplexity = result.at("first");
  }
};

// All tasks of a model in one walk, each kept by itself, so that one more task does not ask the others again.
class TasksMeasurement final : public Measurement {
 public:
  using Measurement::Measurement;

  std::string title() const override { return "tasks of " + model().name; }

  bool find(const ResultCache& cache) override {
    bool all = true;
    for (const TaskQuestions& task : comparison_.questions) {
      if (model().tasks.contains(task.task.name)) continue;
      const auto kept = cache.find(task_fingerprint(task));
      if (kept) model().tasks[task.task.name] = *kept;
      all = all && kept;
    }
    return all;
  }

  void open(ProgressSink&) override {
    for (const TaskQuestions& task : comparison_.questions) {
      if (!model().tasks.contains(task.task.name)) missing_.push_back(task);
    }
    run_.emplace(missing_, *load_tokenizer(model().checkpoint->path()), *model().checkpoint);
  }

  void close() override {
    run_.reset();
    missing_.clear();
  }

  ResourceEstimate estimate(const ComputeOptions& compute, int64_t stream_bytes) const override {
    return estimate_answers(*model().checkpoint, compute, run_->amount(), stream_bytes);
  }

  void run(const ResourcePlan& plan, const ResultCache& cache, ProgressSink& progress) override {
    const AnswerOptions answering{plan.stream_bytes, {}, " of " + model().name};
    const auto outcomes = run_->run(*model().checkpoint, plan.compute, answering, progress);
    for (size_t i = 0; i < missing_.size(); ++i) {
      model().tasks[missing_[i].task.name] = to_json(outcomes[i]);
      cache.keep(task_fingerprint(missing_[i]), model().tasks[missing_[i].task.name]);
    }
  }

 private:
  OrderedJson task_fingerprint(const TaskQuestions& task) const {
    OrderedJson json = fingerprint("task");
    json["task"] = task.task.name;
    json["version"] = task.task.version;
    json["questions sha256"] = task.sha256;
    json["questions"] = task.questions.size();
    json["examples"] = task.examples;
    json["examples sha256"] = task.examples > 0 ? task.examples_sha256 : "";
    return json;
  }

  std::vector<TaskQuestions> missing_;
  std::optional<TaskRun> run_;
};

// In turns with the first model: what else the machine does meets both.
class SpeedMeasurement final : public Measurement {
 public:
  using Measurement::Measurement;

  std::string title() const override { return "speed of " + model().name; }

  bool find(const ResultCache& cache) override {
    const auto kept = cache.find(pair_fingerprint());
    if (kept) model().speed = *kept;
    return kept.has_value();
  }

  void open(ProgressSink&) override {}
  void close() override {}
  bool walks() const override { return false; }

  // Both are in memory at the same time.
  ResourceEstimate estimate(const ComputeOptions& compute, int64_t) const override {
    const ResidentUse use{options().batch, options().prompt_tokens, options().decode_tokens, options().repeats + 1};
    ResourceEstimate both = estimate_resident(*model().checkpoint, compute, use);
    add_resident(both, *first().checkpoint, compute, use, "first_");
    return both;
  }

  void run(const ResourcePlan& plan, const ResultCache& cache, ProgressSink& progress) override {
    const ResidentModel resident_first(*first().checkpoint, plan.compute, progress);
    const ResidentModel resident(*model().checkpoint, plan.compute, progress);
    const auto speeds =
        measure_speed({&resident_first, &resident},
                      {options().prompt_tokens, options().decode_tokens, options().repeats, options().batch}, progress);
    model().speed = {{"first", rates(speeds[0])}, {"model", rates(speeds[1])}};
    cache.keep(pair_fingerprint(), model().speed);
  }

 private:
  static OrderedJson rates(const Speed& speed) {
    return {{"prefill_tokens_per_second", speed.prefill_tokens_per_second},
            {"decode_tokens_per_second", speed.decode_tokens_per_second},
            {"prefill_seconds", speed.prefill_seconds},
            {"decode_seconds", speed.decode_seconds}};
  }

  // Of this machine, with these threads.
  OrderedJson pair_fingerprint() const {
    OrderedJson json = fingerprint("speed");
    std::array<char, 256> host{};
    ::gethostname(host.data(), host.size() - 1);
    json["against"] = first().contents;
    json["machine"] = host.data();
    json["threads"] = at::get_num_threads();
    json["prompt_tokens"] = options().prompt_tokens;
    json["decode_tokens"] = options().decode_tokens;
    json["repeats"] = options().repeats;
    json["batch"] = options().batch;
    return json;
  }
};

}  // namespace

OrderedJson Measurement::fingerprint(const std::string& measurement) const {
  return {{"measurement", measurement},
          {"program", comparison_.program},
          {"libtorch", TORCH_VERSION},
          {"model", model().contents},
          {"device", comparison_.compute.device.str()},
          {"dtype", dtype_name(comparison_.compute.dtype)}};
}

std::vector<std::unique_ptr<Measurement>> measurements_of(Comparison& comparison) {
  const CompareRequest& options = comparison.options;
  std::vector<std::unique_ptr<Measurement>> all;
  const size_t models = comparison.models.size();
  for (size_t model = 0; model < models && !comparison.text_sha256.empty(); ++model) {
    if (!options.kl) {
      all.push_back(std::make_unique<PerplexityMeasurement>(comparison, model));
    } else if (model > 0) {
      all.push_back(std::make_unique<DivergenceMeasurement>(comparison, model));
    }
  }
  for (size_t model = 0; model < models && !comparison.questions.empty(); ++model)
    all.push_back(std::make_unique<TasksMeasurement>(comparison, model));
  for (size_t model = 1; model < models && !options.no_speed; ++model)
    all.push_back(std::make_unique<SpeedMeasurement>(comparison, model));
  return all;
}

}  // namespace dynslice
