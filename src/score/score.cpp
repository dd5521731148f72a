#include "dynslice/score/score.h"

#include <ATen/ATen.h>

#include <charconv>
#include <cmath>
#include <deque>
#include <numbers>

#include "dynslice/model/head.h"
#include "dynslice/support/error.h"
#include "dynslice/support/log.h"
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

 private:
  double sum_ = 0;
  int64_t count_ = 0;
  int64_t skipped_ = 0;
};

// The streams that entered the last `window` layers; the oldest is compared with the one that leaves now.
using History = std::deque<ResidualStream>;

// The finished values, and the window whose layers the walk is in.
struct Progress {
  std::vector<TokenMean> means;
  History history;
};

void score_layer(const LayerStep& step, const Head* final_head, const Metric& metric, ResidualStream& stream,
                 Progress& state) {
  const int64_t start = step.index() + 1 - metric.window;  // first layer of the window that ends here
  if (metric.window > 1) state.history.push_back(stream);  // chunks are replaced, not overwritten: a shallow copy
  int64_t first_token = 0;
  size_t chunk = 0;
  step.transform(stream, [&](const at::Tensor& x) {
    at::Tensor y = forward_mlp(step.layer, step.context, forward_attention(step.layer, step.context, x));
    if (start >= 0) {
      const at::Tensor entered = metric.window > 1 ? state.history.front().chunks[chunk].to(x.device()) : x;
      const at::Tensor left = final_head != nullptr ? final_norm(*final_head, y) : y;
      state.means[static_cast<size_t>(start)].add(token_cosines(entered, left), metric, step.index(), first_token);
      if (metric.window > 1 && stream.store) stream.store->drop_pages(state.history.front().chunks[chunk]);
    }
    first_token += x.size(0) * x.size(1);
    ++chunk;
    return y;
  });
  if (metric.window > 1 && start >= 0) state.history.pop_front();
}

}  // namespace

std::string Metric::name() const {
  switch (kind) {
    case MetricKind::kLayerRedundancy:
      return "lr";
    case MetricKind::kBlockInfluence:
      return "bi";
    case MetricKind::kAngular:
      return "angular";
    case MetricKind::kWindow:
      return "window:" + std::to_string(window);
  }
  return {};
}

Metric parse_metric(const std::string& name) {
  if (name == "lr") return {MetricKind::kLayerRedundancy, 1};
  if (name == "bi") return {MetricKind::kBlockInfluence, 1};
  if (name == "angular") return {MetricKind::kAngular, 1};
  constexpr std::string_view kPrefix = "window:";
  if (name.starts_with(kPrefix)) {
    int64_t window = 0;
    const auto [end, error] = std::from_chars(name.data() + kPrefix.size(), name.data() + name.size(), window);
    if (error == std::errc() && end == name.data() + name.size() && window >= 1) return {MetricKind::kWindow, window};
  }
  throw_error(ErrorKind::kUsage, "--metric ", name, ": is not one of lr, bi, angular, window:N (N layers, at least 1)");
}

LayerScores score_layers(const LayerWalk& walk, const TokenWindows& windows, const ScoreOptions& options) {
  const Metric& metric = options.metric;
  const int64_t layers = walk.config().num_layers();
  if (walk.config().is_sliced()) {
    throw_error(ErrorKind::kUsage, walk.checkpoint().path().string(),
                ": is sliced: its layers work in different bases, whose cosines mean nothing; score the dense model");
  }
  if (metric.window > layers) {
    throw_error(ErrorKind::kUsage, "--metric ", metric.name(), ": the model has only ", layers, " layers");
  }
  Head head;
  if (options.after_final_norm) head = load_head(walk);

  Progress state{std::vector<TokenMean>(static_cast<size_t>(layers - metric.window + 1)), {}};
  ResidualStream stream = walk.embed(windows);
  walk.run("Scoring layers", windows.tokens(), [&](LayerStep& step) {
    const bool normed = options.after_final_norm && step.index() + 1 == layers;
    score_layer(step, normed ? &head : nullptr, metric, stream, state);
  });

  LayerScores scores;
  scores.metric = metric.name();
  const bool high = metric.kind == MetricKind::kBlockInfluence || metric.kind == MetricKind::kAngular;
  scores.more_important = high ? MoreImportant::kHigh : MoreImportant::kLow;
  scores.tokens = windows.tokens();
  for (const TokenMean& mean : state.means) {
    scores.values.push_back(metric.kind == MetricKind::kBlockInfluence ? 1 - mean.mean() : mean.mean());
    scores.skipped_tokens += mean.skipped();
  }
  if (scores.skipped_tokens > 0) {
    log(LogLevel::kWarning, std::to_string(scores.skipped_tokens) + " tokens with norm 0 were left out of the scores");
  }
  return scores;
}

}  // namespace dynslice
