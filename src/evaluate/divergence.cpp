#include "dynslice/evaluate/divergence.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <span>
#include <string>

#include "aten.h"
#include "dynslice/support/error.h"
#include "dynslice/walk/head.h"
#include "dynslice/walk/memory_plan.h"
#include "evaluate/scored_windows.h"

namespace dynslice {
namespace {

// One of the two models on its way through the windows of a turn.
struct Side {
  Side(const Checkpoint& checkpoint, const ComputeOptions& compute, int64_t length, ProgressSink& progress,
       std::string title)
      : walk(checkpoint, compute, length, progress),
        head(load_head(walk, at::kFloat)),
        name(std::move(title)),
        stream(walk.empty_stream()) {}

  LayerWalk walk;
  Head head;
  std::string name;
  ResidualStream stream;
};

// Walks the windows through both models in turns: the reference first. Between layers the journal keeps the turn, both
// streams, and the results of the turns before. Layers count on from one model to the other.
class ComparisonWalk {
 public:
  ComparisonWalk(Side& model, Side& reference, const TokenWindows& windows, const PerplexityOptions& options)
      : model_(model), reference_(reference), windows_(windows), options_(options) {}

  NextTokenComparison run() {
    restore();
    for (; turn_ * per_turn_ < windows_.count; ++turn_) {
      const auto [some, suffix] = turn_of(windows_, turn_, per_turn_);
      walk_layers(reference_, 0, some, suffix);
      walk_layers(model_, layers_of(reference_), some, suffix);
      add(compare_next_tokens({model_.walk, model_.head, std::move(model_.stream)},
                              {reference_.walk, reference_.head, std::move(reference_.stream)}, some,
                              "Comparing" + suffix));
      for (Side* side : {&model_, &reference_}) side->stream = side->walk.empty_stream();
      next_layer_ = 0;
    }
    result_.same_top = result_.same_top.to(at::kBool);
    return result_;
  }

 private:
  static int64_t layers_of(const Side& side) { return side.walk.config().num_layers(); }

  // Layer 0 of this model counts as layer `before` of all.
  void walk_layers(Side& side, int64_t before, const TokenWindows& some, const std::string& suffix) {
    if (next_layer_ >= before + layers_of(side)) return;
    if (side.stream.chunks.empty()) side.stream = side.walk.embed(some);
    run_dense(side.walk, side.name + suffix, side.stream,
              {std::max<int64_t>(0, next_layer_ - before), [&](int64_t next) { save(before + next); }});
  }

  void add(const NextTokenComparison& turn) {
    const auto append = [](at::Tensor& all, const at::Tensor& some) {
      all = all.defined() ? at::cat({all, some}) : some;
    };
    append(result_.losses, turn.losses);
    append(result_.reference_losses, turn.reference_losses);
    append(result_.divergences, turn.divergences);
    append(result_.same_top, turn.same_top.to(at::kInt));  // a dtype that the journal keeps
  }

  WalkState state() {
    WalkState state;
    state.keep("windows_per_turn", per_turn_);  // the free memory may be another one when the run goes on
    state.keep("turn", turn_);
    state.keep_on_host("losses", result_.losses);
    state.keep_on_host("reference losses", result_.reference_losses);
    state.keep_on_host("divergences", result_.divergences);
    state.keep_on_host("same top", result_.same_top);
    state.keep("stream", model_.stream);
    state.keep("reference stream", reference_.stream);
    return state;
  }

  void restore() {
    int64_t bytes_per_window = 0, stream_bytes = options_.stream_bytes;
    for (const Side* side : {&model_, &reference_}) {
      bytes_per_window += windows_.length * side->walk.config().hidden_size * 4;
      if (options_.stream_bytes > 0) continue;
      stream_bytes = std::max(stream_bytes, default_turn_bytes(side->walk.checkpoint(), side->walk.options().device));
    }
    per_turn_ = windows_per_turn(bytes_per_window, stream_bytes, windows_.length, model_.walk.options().chunk_tokens);
    next_layer_ = options_.journal.restore(state(), model_.walk.options().device).value_or(0);
  }

  void save(int64_t next) { options_.journal.save(next, layers_of(model_) + layers_of(reference_), state()); }

  Side& model_;
  Side& reference_;
  const TokenWindows& windows_;
  const PerplexityOptions& options_;
  int64_t per_turn_ = 0, turn_ = 0, next_layer_ = 0;
  NextTokenComparison result_;  // of the turns before
};

double squared(double value) { return value * value; }

Spread spread_of(const at::Tensor& values) {
  const at::Tensor sorted = std::get<0>(values.reshape({-1}).sort());
  const std::span<const double> in_order(sorted.const_data_ptr<double>(), static_cast<size_t>(sorted.numel()));
  Spread spread;
  spread.mean = mean_of(values);
  spread.minimum = in_order.front();
  spread.maximum = in_order.back();
  for (size_t i = 0; i < Spread::kLevels.size(); ++i)
    spread.quantiles[i] = quantile_of_sorted(in_order, Spread::kLevels[i]);
  return spread;
}

// Ratio and difference of the perplexities, whose errors are not independent: both are of the same tokens.
void compare_losses(Divergence& result, const at::Tensor& losses, const at::Tensor& reference_losses) {
  const Estimate mean = mean_of(losses), reference = mean_of(reference_losses);
  const double perplexity = result.perplexity.value, reference_perplexity = result.reference.value;
  result.log_ratio = mean_of(losses - reference_losses);
  result.ratio.value = std::exp(result.log_ratio.value);
  result.ratio.standard_error = result.ratio.value * result.log_ratio.standard_error;
  result.difference.value = perplexity - reference_perplexity;
  const at::Tensor slopes = losses * perplexity - reference_losses * reference_perplexity;
  result.difference.standard_error = mean_of(slopes).standard_error;
  // var(a - b) = var(a) + var(b) - 2 cov(a, b), of the means here.
  const double covariance =
      (squared(mean.standard_error) + squared(reference.standard_error) - squared(result.log_ratio.standard_error)) / 2;
  const double scale = mean.standard_error * reference.standard_error;
  if (scale > 0) result.correlation = covariance / scale;
}

Divergence summarize(const NextTokenComparison& all, const TokenWindows& windows, PerplexityProtocol protocol) {
  const at::Tensor losses = scored(all.losses, windows, protocol);
  const at::Tensor reference_losses = scored(all.reference_losses, windows, protocol);
  Divergence result;
  result.perplexity = perplexity_of(losses, windows);
  result.reference = perplexity_of(reference_losses, windows);
  compare_losses(result, losses, reference_losses);
  result.kl = spread_of(scored(all.divergences, windows, protocol));
  const at::Tensor change = at::exp(-losses) - at::exp(-reference_losses);
  result.probability_change = spread_of(change);
  const Estimate square = mean_of(change.square());
  result.rms_probability_change.value = std::sqrt(square.value);
  if (square.value > 0)
    result.rms_probability_change.standard_error = square.standard_error / (2 * result.rms_probability_change.value);
  result.same_top = mean_of(scored(all.same_top, windows, protocol).to(at::kDouble));
  return result;
}

}  // namespace

Divergence measure_divergence(const Checkpoint& checkpoint, const Checkpoint& reference, const ComputeOptions& compute,
                              TokenWindows windows, const PerplexityOptions& options, ProgressSink& progress) {
  check_windows(windows, checkpoint.config(), options.protocol);
  check_windows(windows, reference.config(), options.protocol);
  if (checkpoint.config().vocab_size != reference.config().vocab_size) {
    throw_error(ErrorKind::kUsage, reference.path().string(), ": its vocabulary has ", reference.config().vocab_size,
                " entries and that of ", checkpoint.path().string(), " has ", checkpoint.config().vocab_size,
                "; only models with one vocabulary can be compared token by token");
  }
  replace_first_tokens(windows, options);
  const auto start = std::chrono::steady_clock::now();
  Side model(checkpoint, compute, windows.length, progress, "Layers");
  Side other(reference, compute, windows.length, progress, "Layers of the reference");
  Divergence result = summarize(ComparisonWalk(model, other, windows, options).run(), windows, options.protocol);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() +
                         options.journal.earlier_seconds();
  result.perplexity.seconds = result.reference.seconds = seconds;
  return result;
}

}  // namespace dynslice
