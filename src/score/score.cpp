#include "dynslice/score/score.h"

#include <charconv>
#include <cmath>
#include <numbers>
#include <utility>

#include "aten.h"
#include "dynslice/support/error.h"
#include "dynslice/support/log.h"
#include "dynslice/walk/head.h"
#include "dynslice/walk/journaled_walk.h"
#include "score/cka.h"
#include "score/cosine.h"

namespace dynslice {
namespace {

// Mean of a per-token value over all tokens of all chunks.
class TokenMean {
 public:
  // `layer` and `first_token` are for the error message only.
  void add(const at::Tensor& cosines, const Metric& metric, int64_t layer, int64_t first_token) {
    const double* cosine = cosines.const_data_ptr<double>();
    for (int64_t t = 0; t < cosines.numel(); ++t) {
      if (std::isnan(cosine[t])) {
        throw_error(ErrorKind::kBadInput, "NaN or Inf in the residual stream at layer ", layer, ", token ",
                    first_token + t,
                    "; the model's weights are damaged, or too large for the dtype (try --dtype fp32)");
      }
      if (cosine[t] == kZeroNorm) {
        ++skipped_;
        continue;
      }
      sum_ += metric.kind == MetricKind::kAngular ? std::acos(cosine[t]) / std::numbers::pi : cosine[t];
      ++count_;
    }
  }
  double mean() const { return count_ == 0 ? 0.0 : sum_ / static_cast<double>(count_); }
  int64_t skipped() const { return skipped_; }
  friend void to_json(OrderedJson& json, const TokenMean& mean) { json = {mean.sum_, mean.count_, mean.skipped_}; }
  friend void from_json(const OrderedJson& json, TokenMean& mean) {
    json.at(0).get_to(mean.sum_);
    json.at(1).get_to(mean.count_);
    json.at(2).get_to(mean.skipped_);
  }

 private:
  double sum_ = 0;
  int64_t count_ = 0;
  int64_t skipped_ = 0;
};

// The walk that scores windows of layers. Between two layers the journal keeps the means so far, the stream, and the
// streams that entered the window's layers.
class ScoringWalk {
 public:
  ScoringWalk(const LayerWalk& walk, const ScoreOptions& options)
      : walk_(walk), options_(options), window_(options.metric.window), stream_(walk.empty_stream()) {
    if (options.after_final_norm) head_ = load_head(walk);
    means_.resize(static_cast<size_t>(walk.config().num_layers() - window_ + 1));
    entered_.assign(static_cast<size_t>(window_ - 1), walk.empty_stream());
  }

  const std::vector<TokenMean>& run(const TokenWindows& windows) {
    run_journaled(walk_, options_.journal,
                  {.task = "Scoring layers",
                   .tokens = windows.tokens(),
                   .state = [&] { return state(); },
                   .begin = [&] { stream_ = walk_.embed(windows); },
                   .visit = [&](LayerStep& step) { visit(step); }});
    return means_;
  }

 private:
  // Compares the stream that leaves with the one that entered the first layer of the window that ends here.
  void visit(LayerStep& step) {
    const int64_t start = step.index() + 1 - window_;
    const bool normed = options_.after_final_norm && step.index() + 1 == walk_.config().num_layers();
    // A ring: the oldest stream makes room for the one that enters now.
    ResidualStream* oldest = window_ > 1 ? &entered_[static_cast<size_t>(step.index() % (window_ - 1))] : nullptr;
    const ResidualStream first = oldest != nullptr ? std::exchange(*oldest, stream_.snapshot()) : ResidualStream{};
    int64_t first_token = 0;
    size_t chunk = 0;
    step.transform(stream_, [&](const at::Tensor& x) {
      at::Tensor y = forward_layer(step.layer, step.context, x);
      if (start >= 0) {
        const at::Tensor entered = oldest != nullptr ? first.chunks[chunk].to(x.device()) : x;
        const at::Tensor left = normed ? final_norm(head_, y) : y;
        means_[static_cast<size_t>(start)].add(token_cosines(entered, left), options_.metric, step.index(),
                                               first_token);
        if (first.store) first.store->drop_pages(first.chunks[chunk]);
      }
      first_token += x.size(0) * x.size(1);
      ++chunk;
      return y;
    });
  }

  WalkState state() {
    WalkState state;
    state.keep("means", means_);
    state.keep("stream", stream_);
    for (size_t i = 0; i < entered_.size(); ++i) state.keep("entered " + std::to_string(i), entered_[i]);
    return state;
  }

  const LayerWalk& walk_;
  const ScoreOptions& options_;
  const int64_t window_;
  Head head_;
  std::vector<TokenMean> means_;  // of every window
  ResidualStream stream_;
  std::vector<ResidualStream> entered_;  // the last window - 1 layers
};

LayerScores scores_of(const OrderedJson& result, const Metric& metric, int64_t tokens) {
  LayerScores scores;
  scores.metric = metric.name();
  scores.more_important = row_of(metric.kind).high_is_important ? MoreImportant::kHigh : MoreImportant::kLow;
  scores.tokens = tokens;
  scores.values = result.at("values").get<std::vector<double>>();
  scores.skipped_tokens = result.at("skipped_tokens").get<int64_t>();
  if (result.contains("matrix")) scores.matrix = result.at("matrix").get<std::vector<std::vector<double>>>();
  return scores;
}

// Values, and the matrix of the layers' outputs x_1 ... x_L.
OrderedJson score_by_cka(const LayerWalk& walk, const TokenWindows& windows, const JournalPhase& journal) {
  if (windows.length < 4)
    throw_error(ErrorKind::kUsage, "--seqlen ", windows.length, ": --metric cka needs at least 4 tokens a window");
  const at::Tensor cka = cka_of_streams(walk, windows, journal);
  if (!at::isfinite(cka).all().item<bool>()) {
    throw_error(ErrorKind::kBadInput, walk.checkpoint().path().string(),
                ": a residual stream holds NaN or Inf, or is the same for all tokens; the model's weights are damaged, "
                "or too large for the dtype (try --dtype fp32)");
  }
  OrderedJson result = {{"values", OrderedJson::array()}, {"skipped_tokens", 0}, {"matrix", OrderedJson::array()}};
  for (int64_t i = 0; i + 1 < cka.size(0); ++i) {
    result["values"].push_back(cka[i][i + 1].item<double>());
    const at::Tensor row = cka[i + 1].narrow(0, 1, cka.size(0) - 1).contiguous();
    result["matrix"].push_back(
        std::vector<double>(row.const_data_ptr<double>(), row.const_data_ptr<double>() + row.numel()));
  }
  return result;
}

// What the metric makes of the mean over tokens.
double value_of(const Metric& metric, double mean) {
  if (metric.kind == MetricKind::kBlockInfluence) return 1 - mean;
  return metric.kind == MetricKind::kLim ? -mean : mean;
}

OrderedJson score_by_cosine(const LayerWalk& walk, const TokenWindows& windows, const ScoreOptions& options) {
  OrderedJson result = {{"values", OrderedJson::array()}, {"skipped_tokens", 0}};
  int64_t skipped = 0;
  ScoringWalk scoring(walk, options);
  for (const TokenMean& mean : scoring.run(windows)) {
    result["values"].push_back(value_of(options.metric, mean.mean()));
    skipped += mean.skipped();
  }
  result["skipped_tokens"] = skipped;
  return result;
}

}  // namespace

std::string Metric::name() const {
  return name_of(kind) + (row_of(kind).has_window ? ":" + std::to_string(window) : "");
}

Metric parse_metric(const std::string& name) {
  std::string names;
  for (const MetricRow& row : kMetrics) {
    if (!row.has_window && row.name == name) return {row.value, 1};
    names.append(names.empty() ? "" : ", ").append(row.name);
    if (!row.has_window) continue;
    names += ":N (N layers, at least 1)";
    const std::string prefix = std::string(row.name) + ":";
    if (!name.starts_with(prefix)) continue;
    int64_t window = 0;
    const char* last = name.data() + name.size();
    const auto [end, error] = std::from_chars(name.data() + prefix.size(), last, window);
    if (error == std::errc() && end == last && window >= 1) return {row.value, window};
  }
  throw_error(ErrorKind::kUsage, "--metric ", name, ": is not one of ", names);
}

LayerScores score_layers(const LayerWalk& walk, const TokenWindows& windows, const ScoreOptions& options) {
  const Metric& metric = options.metric;
  if (!metric.needs_text()) return score_weights(walk.checkpoint(), walk.progress(), options.journal);
  const int64_t layers = walk.config().num_layers();
  if (walk.config().is_sliced()) {
    throw_error(ErrorKind::kUsage, walk.checkpoint().path().string(),
                ": is sliced: its layers work in different bases, whose cosines mean nothing; score the dense model");
  }
  if (metric.window > layers) {
    throw_error(ErrorKind::kUsage, "--metric ", metric.name(), ": the model has only ", layers, " layers");
  }
  std::optional<OrderedJson> result = options.journal.result();
  if (!result) {
    result = metric.kind == MetricKind::kCka ? score_by_cka(walk, windows, options.journal)
                                             : score_by_cosine(walk, windows, options);
    options.journal.finish(*result);
  }
  LayerScores scores = scores_of(*result, metric, windows.tokens());
  if (scores.skipped_tokens > 0) {
    log(LogLevel::kWarning, std::to_string(scores.skipped_tokens) + " tokens with norm 0 were left out of the scores");
  }
  return scores;
}

}  // namespace dynslice
