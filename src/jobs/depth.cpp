// dynslice depth drop and depth merge.
#include "dynslice/jobs/depth.h"

#include <algorithm>
#include <cmath>
#include <tuple>
#include <utility>

#include "dynslice/depth/drop.h"
#include "dynslice/depth/estimate.h"
#include "dynslice/depth/merge.h"
#include "dynslice/model/architecture.h"
#include "dynslice/score/score.h"
#include "dynslice/support/error.h"
#include "jobs/depth_frame.h"

namespace dynslice {
namespace {

// ---- drop

DepthSearchResult drop_named(const DropRequest& request, const DepthInputs& in) {
  std::vector<int64_t> dropped;
  for (const auto& [first, last] : request.indices) {
    if (last >= in.layers()) std::ignore = plan_without(in.layers(), {last});  // says that it does not exist
    for (int64_t layer = first; layer <= last; ++layer) dropped.push_back(layer);
  }
  DepthSearchResult chosen{plan_without(in.layers(), dropped), DropSearch{dropped, {}}};
  chosen.json["removed"] = dropped;
  return chosen;
}

DepthSearchResult drop_by_influence(const DepthInputs& in, int64_t count) {
  const LayerWalk walk(in.checkpoint, in.compute, in.windows().length, in.progress);
  const ScoreOptions score{parse_metric("bi"), false, in.phase("scoring")};
  const LayerScores scores = score_layers(walk, in.windows(), score);
  const std::vector<int64_t> dropped = least_important(scores, count);
  DepthSearchResult chosen{plan_without(in.layers(), dropped), DropSearch{dropped, scores}};
  chosen.json["removed"] = dropped;
  chosen.json["scores"] = to_json(scores);
  return chosen;
}

DepthSearchResult drop_by_perplexity(const DepthInputs& in, int64_t count) {
  const LayerWalk walk(in.checkpoint, in.compute, in.windows().length, in.progress);
  DropSearch search;
  search.trials = drop_by_loss(walk, in.windows(), count, [&](const std::string& name) { return in.phase(name); });
  OrderedJson trials = OrderedJson::array();
  for (const DropTrial& trial : search.trials) {
    search.dropped.push_back(trial.layer);
    trials.push_back({{"layer", trial.layer}, {"perplexity", std::exp(trial.loss)}});
  }
  std::sort(search.dropped.begin(), search.dropped.end());
  DepthSearchResult chosen{plan_without(in.layers(), search.dropped), {}};
  chosen.json["trials"] = std::move(trials);
  chosen.json["removed"] = search.dropped;
  chosen.search = std::move(search);
  return chosen;
}

// ---- merge

OrderedJson describe_merging(const MergeSearch& search) {
  const MergeResult& result = search.result;
  OrderedJson json;
  json["merge_rule"] = name_of(search.rule);
  json["threshold"] = result.threshold;
  json["cosine"] = result.cosine;
  json["merged"] = OrderedJson::array();
  json["trials"] = OrderedJson::array();
  for (const MergeTrial& trial : result.trials)
    json["trials"].push_back({{"low", trial.low}, {"high", trial.high}, {"cosine", trial.cosine}});
  for (const std::vector<int64_t>& layers : result.plan.layers) {
    if (layers.size() > 1) json["merged"].push_back(layers);
  }
  json["layers_run"] = result.layers_run;
  json["layers_if_whole"] = result.layers_if_whole;
  return json;
}

DepthSearchResult merge_layers_of(const MergeRequest& request, const DepthInputs& in) {
  const LayerWalk walk(in.checkpoint, in.compute, in.windows().length, in.progress);
  MergeOptions merging;
  merging.rule = request.rule;
  if (request.threshold) merging.threshold = *request.threshold;
  merging.target_layers = request.target_layers;
  if (request.ratio) merging.target_layers = in.layers() - share_of_layers(*request.ratio, in.layers());
  MergeSearch search{request.rule, merge_by_sliding(walk, in.windows(), merging,
                                                    [&](const std::string& name) { return in.phase(name); })};
  OrderedJson json = describe_merging(search);
  DepthPlan plan = search.result.plan;
  return {std::move(plan), std::move(search), std::move(json)};
}

}  // namespace

Outcome<DepthResult> run(const DropRequest& request, ProgressSink& progress) {
  return run_method(request, progress, [&](const Checkpoint& checkpoint) {
    const int64_t layers = checkpoint.config().num_layers();
    DepthMethod method{"drop", "drop"};
    if (!request.indices.empty()) {
      int64_t named = 0;
      for (const auto& [first, last] : request.indices) named += last - first + 1;
      method.layers_left = std::max<int64_t>(1, layers - named);
      method.suffix += "-" + std::to_string(method.layers_left);
      method.search = [&](const DepthInputs& in) { return drop_named(request, in); };
      return method;
    }
    const int64_t count = layers_to_go(request, layers);
    method.layers_left = layers - count;
    method.suffix += "-" + std::to_string(method.layers_left);
    const bool by_influence = request.order == DropOrder::kInfluence;
    method.samples = by_influence ? 32 : 8;
    method.use = [by_influence, layers, count](const TokenWindows&) {
      DepthUse use;
      if (by_influence) return use;
      use.streams = layers + 1;
      use.losses = layers * count;
      use.walks = static_cast<double>(count) * static_cast<double>(layers) / 2;
      return use;
    };
    method.search = [by_influence, count](const DepthInputs& in) {
      return by_influence ? drop_by_influence(in, count) : drop_by_perplexity(in, count);
    };
    return method;
  });
}

Outcome<DepthResult> run(const MergeRequest& request, ProgressSink& progress) {
  return run_method(request, progress, [&](const Checkpoint& checkpoint) {
    const int64_t layers = checkpoint.config().num_layers();
    DepthMethod method{"merge", "merged"};
    if (!architecture_of(checkpoint.config()).can_merge_layers())
      throw_error(ErrorKind::kUsage, checkpoint.path().string(), ": ", checkpoint.config().model_type,
                  " has layers of two kinds, of which no sum can be made; use depth drop or depth streamline");
    method.layers_left = request.target_layers ? *request.target_layers
                         : request.ratio       ? layers - share_of_layers(*request.ratio, layers)
                                               : layers;
    if (method.layers_left < layers) method.suffix = "merge-" + std::to_string(method.layers_left);
    method.samples = 10;
    method.seqlen = std::min<int64_t>(128, checkpoint.config().max_position_embeddings);
    method.use = [layers](const TokenWindows&) {
      DepthUse use;
      use.streams = layers + 2;
      use.merged_layers = 3;  // the sum, the term that was loaded, and its fp32 copy
      use.walks = static_cast<double>(layers) / 2;
      return use;
    };
    method.search = [&](const DepthInputs& in) { return merge_layers_of(request, in); };
    return method;
  });
}

}  // namespace dynslice
