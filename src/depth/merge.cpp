#include "dynslice/depth/merge.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "aten.h"
#include "dynslice/support/error.h"
#include "dynslice/walk/head.h"

namespace dynslice {
namespace {

// Thresholds closer than this tell nothing apart.
constexpr double kFinestThreshold = 1e-4;

// Layers low ... high that became one.
struct Range {
  int64_t low = 0, high = 0;
  bool operator<(const Range& other) const { return std::pair(low, high) < std::pair(other.low, other.high); }
};

std::vector<int64_t> layers_of(const Range& range) {
  std::vector<int64_t> layers;
  for (int64_t layer = range.low; layer <= range.high; ++layer) layers.push_back(layer);
  return layers;
}

// `ranges` from the top down.
DepthPlan plan_of(const std::vector<Range>& ranges, int64_t layers, MergeRule rule) {
  DepthPlan plan;
  plan.rule = rule;
  auto range = ranges.rbegin();
  for (int64_t layer = 0; layer < layers;) {
    if (range != ranges.rend() && range->low == layer) {
      plan.layers.push_back(layers_of(*range));
      layer = range++->high + 1;
    } else {
      plan.layers.push_back({layer++});
    }
  }
  return plan;
}

std::string name_of(const std::vector<Range>& ranges) {
  std::string name = "merge";
  for (const Range& range : ranges) name += " " + std::to_string(range.low) + "-" + std::to_string(range.high);
  return name;
}

// Runs models with merged ranges on the windows and compares their final hidden states with the dense model's.
class MergeTrials {
 public:
  MergeTrials(const LayerWalk& walk, const TokenWindows& windows, MergeRule rule,
              const std::function<JournalPhase(const std::string& name)>& phase)
      : walk_(walk), windows_(windows), rule_(rule), phase_(phase), head_(load_head(walk)) {}

  // The cosine with these ranges merged, from the top down; the last one is the lowest layer that differs.
  double cosine(const std::vector<Range>& ranges) {
    const std::string name = name_of(ranges);
    if (const auto known = cosines_.find(name); known != cosines_.end()) return known->second;
    const JournalPhase journal = phase_(name);
    double value = 0;
    if (const auto result = journal.result()) {
      value = result->at("cosine").get<double>();
    } else {
      value = measure(ranges);
      journal.finish({{"cosine", value}});
    }
    const auto merged = plan_of(ranges, layers(), rule_).layers.size();
    layers_if_whole_ += static_cast<int64_t>(merged);
    layers_run_ += static_cast<int64_t>(merged) - ranges.back().low;
    cosines_[name] = value;
    return value;
  }

  int64_t layers() const { return walk_.config().num_layers(); }
  int64_t layers_run() const { return layers_run_; }
  int64_t layers_if_whole() const { return layers_if_whole_; }

 private:
  // The dense model's streams at every layer's entry, and its final hidden states.
  void run_dense_model() {
    ResidualStream stream = walk_.embed(windows_);
    walk_.run("Dense model", stream.tokens(), [&](LayerStep& step) {
      entering_.push_back(stream.snapshot());
      step.transform(stream, forward_of(step.layer, step.context));
    });
    dense_ = finish(std::move(stream));
  }

  static std::function<at::Tensor(const at::Tensor&)> forward_of(const DecoderLayer& layer,
                                                                 const LayerContext& context) {
    return [&](const at::Tensor& x) { return forward_layer(layer, context, x); };
  }

  // The stream after the final norm.
  ResidualStream finish(ResidualStream stream) const {
    stream.transform([&](const at::Tensor& x) { return final_norm(head_, x); });
    return stream;
  }

  double measure(const std::vector<Range>& ranges) {
    if (entering_.empty()) run_dense_model();
    const int64_t low = ranges.back().low;
    const DepthPlan plan = plan_of(ranges, layers(), rule_);
    const int64_t kept = static_cast<int64_t>(plan.layers.size()) - low;
    ProgressTask task(walk_.progress(),
                      "Layers " + std::to_string(low) + "-" + std::to_string(ranges.back().high) + " as one",
                      kept * windows_.tokens(), "token-layers");
    ResidualStream stream = entering_[static_cast<size_t>(low)];
    for (size_t i = static_cast<size_t>(low); i < plan.layers.size(); ++i) {
      const DecoderLayer layer = load(plan.layers[i]);
      stream.transform(forward_of(layer, walk_.context()));
      task.advance(windows_.tokens());
    }
    return compare(finish(std::move(stream)));
  }

  DecoderLayer load(const std::vector<int64_t>& sources) const {
    const ComputeOptions& options = walk_.options();
    if (sources.size() == 1) return load_decoder_layer(walk_.checkpoint(), sources[0], options.dtype, options.device);
    return with_dtype(merge_layers(rule_, sources,
                                   [&](int64_t layer) {
                                     return load_decoder_layer(walk_.checkpoint(), layer, at::kFloat, options.device);
                                   }),
                      options.dtype);
  }

  double compare(const ResidualStream& stream) const {
    double sum = 0;
    size_t chunk = 0;
    stream.visit([&](const at::Tensor& x) {
      const at::Tensor a = x.flatten(1).to(at::kDouble);
      const at::Tensor b = dense_.chunks[chunk++].to(x.device()).flatten(1).to(at::kDouble);
      sum += ((a * b).sum(1) / (a.norm(2, 1) * b.norm(2, 1))).sum().item<double>();
    });
    if (!std::isfinite(sum)) {
      throw_error(ErrorKind::kBadInput, walk_.checkpoint().path().string(),
                  ": NaN or Inf in the final hidden states; the model's weights are damaged, or too large for the "
                  "dtype (try --dtype fp32)");
    }
    return sum / static_cast<double>(windows_.count);
  }

  const LayerWalk& walk_;
  const TokenWindows& windows_;
  const MergeRule rule_;
  const std::function<JournalPhase(const std::string& name)>& phase_;
  Head head_;
  std::vector<ResidualStream> entering_;  // each layer, in the dense model
  ResidualStream dense_;                  // after the final norm
  std::map<std::string, double> cosines_;
  int64_t layers_run_ = 0, layers_if_whole_ = 0;
};

// One search from the top down. Stops as soon as `fewest` layers are left.
MergeResult search(MergeTrials& trials, MergeRule rule, double threshold, int64_t fewest) {
  MergeResult result;
  result.threshold = threshold;
  std::vector<Range> fixed;
  int64_t left = trials.layers();
  int64_t high = left - 2;  // the last layer stays
  while (high >= 1 && left > fewest) {
    int64_t low = high;  // of the last range that was good
    while (low > 0 && left > fewest) {
      std::vector<Range> ranges = fixed;
      ranges.push_back({low - 1, high});
      const double cosine = trials.cosine(ranges);
      result.trials.push_back({low - 1, high, cosine});
      if (!(cosine > threshold)) break;
      result.cosine = cosine;
      --low;
      --left;
    }
    if (low < high) fixed.push_back({low, high});
    high = low - 1;
  }
  result.plan = plan_of(fixed, trials.layers(), rule);
  return result;
}

// The highest threshold at which the search gets down to the target.
MergeResult search_target(MergeTrials& trials, MergeRule rule, int64_t target) {
  const auto layers_at = [&](const MergeResult& result) { return static_cast<int64_t>(result.plan.layers.size()); };
  MergeResult best = search(trials, rule, -1.0, target);
  if (layers_at(best) > target) {
    throw_error(ErrorKind::kUsage, "merging cannot get below ", layers_at(best), " layers; ", target,
                " were asked for");
  }
  double low = -1, high = 1;
  while (high - low > kFinestThreshold) {
    const double middle = (low + high) / 2;
    MergeResult result = search(trials, rule, middle, target);
    if (layers_at(result) > target) {
      high = middle;
    } else {
      low = middle;
      best = std::move(result);
    }
  }
  return best;
}

}  // namespace

MergeResult merge_by_sliding(const LayerWalk& walk, const TokenWindows& windows, const MergeOptions& options,
                             const std::function<JournalPhase(const std::string& name)>& phase) {
  check_whole_layers(walk.checkpoint());
  const int64_t layers = walk.config().num_layers();
  const int64_t fewest = std::min<int64_t>(layers, 2);  // the last layer, and all others as one
  if (options.target_layers && (*options.target_layers < fewest || *options.target_layers > layers)) {
    throw_error(ErrorKind::kUsage, "merging leaves ", fewest, " to ", layers, " layers of this model; ",
                *options.target_layers, " were asked for");
  }
  MergeTrials trials(walk, windows, options.rule, phase);
  MergeResult result = options.target_layers ? search_target(trials, options.rule, *options.target_layers)
                                             : search(trials, options.rule, options.threshold, 1);
  result.layers_run = trials.layers_run();
  result.layers_if_whole = trials.layers_if_whole();
  return result;
}

}  // namespace dynslice
