// dynslice depth drop and depth merge.
#include <algorithm>

#include "cli/verbs/depth_frame.h"
#include "cli/verbs/verbs.h"
#include "dynslice/depth/drop.h"
#include "dynslice/depth/estimate.h"
#include "dynslice/depth/merge.h"
#include "dynslice/score/score.h"
#include "dynslice/support/error.h"

namespace dynslice::cli {
namespace {

// ---- drop

Found drop_named(const DropRequest& options, const Search& in) {
  std::vector<int64_t> dropped;
  for (const auto& [first, last] : options.indices) {
    if (last >= in.layers()) plan_without(in.layers(), {last});  // says that it does not exist
    for (int64_t layer = first; layer <= last; ++layer) dropped.push_back(layer);
  }
  Found found{plan_without(in.layers(), dropped), {}, {}, {}, "Dropped as named: layers " + join(dropped) + ".\n"};
  found.json["removed"] = dropped;
  return found;
}

Found drop_by_influence(const Search& in, int64_t count) {
  const LayerWalk walk(in.checkpoint, in.compute, in.windows().length, in.progress);
  dynslice::ScoreOptions score{parse_metric("bi"), false, in.phase("scoring")};
  const LayerScores scores = score_layers(walk, in.windows(), score);
  const std::vector<int64_t> dropped = least_important(scores, count);
  Found found{plan_without(in.layers(), dropped), {}, {"layer", "block influence", ""}, {}, {}};
  const double highest = std::max(1e-12, *std::max_element(scores.values.begin(), scores.values.end()));
  for (int64_t layer = 0; layer < in.layers(); ++layer) {
    const double value = scores.values[static_cast<size_t>(layer)];
    const bool goes = std::find(dropped.begin(), dropped.end(), layer) != dropped.end();
    found.rows.push_back({std::to_string(layer), format_fixed(value, 6), goes ? "dropped" : bar(value / highest, 30)});
  }
  found.summary = "Dropped: layers " + join(dropped) + ".\n";
  found.json["removed"] = dropped;
  found.json["scores"] = to_json(scores);
  return found;
}

Found drop_by_perplexity(const Search& in, int64_t count) {
  const LayerWalk walk(in.checkpoint, in.compute, in.windows().length, in.progress);
  const auto trials = drop_by_loss(walk, in.windows(), count, [&](const std::string& name) { return in.phase(name); });
  Found found{{}, {}, {"dropped", "layer", "perplexity"}, {}, {}};
  std::vector<int64_t> dropped;
  found.json["trials"] = OrderedJson::array();
  for (const DropTrial& trial : trials) {
    dropped.push_back(trial.layer);
    found.rows.push_back(
        {std::to_string(dropped.size()), std::to_string(trial.layer), format_fixed(perplexity_of(trial.loss), 3)});
    found.json["trials"].push_back({{"layer", trial.layer}, {"perplexity", perplexity_of(trial.loss)}});
  }
  std::sort(dropped.begin(), dropped.end());
  found.plan = plan_without(in.layers(), dropped);
  found.json["removed"] = dropped;
  found.summary = "Dropped: layers " + join(dropped) +
                  ", in the order of the table; perplexity is that of the "
                  "calibration text.\n";
  return found;
}

// ---- merge

Found merge(const MergeRequest& options, const Search& in) {
  const LayerWalk walk(in.checkpoint, in.compute, in.windows().length, in.progress);
  dynslice::MergeOptions merging;
  merging.rule = parse_merge_rule(options.rule);
  if (options.threshold) merging.threshold = *options.threshold;
  merging.target_layers = options.target_layers;
  if (options.ratio) merging.target_layers = in.layers() - share_of_layers(*options.ratio, in.layers());
  const MergeResult result =
      merge_by_sliding(walk, in.windows(), merging, [&](const std::string& name) { return in.phase(name); });

  Found found{result.plan, {}, {"layers as one", "cosine", ""}, {}, {}};
  found.json["merge_rule"] = options.rule;
  found.json["threshold"] = result.threshold;
  found.json["cosine"] = result.cosine;
  found.json["merged"] = OrderedJson::array();
  found.json["trials"] = OrderedJson::array();
  for (const MergeTrial& trial : result.trials) {
    const bool good = trial.cosine > result.threshold;
    found.rows.push_back({span_of(trial.low, trial.high), format_fixed(trial.cosine, 4), good ? "" : "too far"});
    found.json["trials"].push_back({{"low", trial.low}, {"high", trial.high}, {"cosine", trial.cosine}});
  }
  std::string groups;
  for (const std::vector<int64_t>& layers : result.plan.layers) {
    if (layers.size() < 2) continue;
    groups += (groups.empty() ? "" : ", ") + span_of(layers.front(), layers.back());
    found.json["merged"].push_back(layers);
  }
  found.json["layers_run"] = result.layers_run;
  found.json["layers_if_whole"] = result.layers_if_whole;
  found.summary = groups.empty()
                      ? "Nothing was merged: no two layers became one above the threshold.\n"
                      : "Merged (" + options.rule + "): layers " + groups + "; cosine " +
                            format_fixed(result.cosine, 4) + ", threshold " + format_fixed(result.threshold, 4) + ".\n";
  if (result.layers_run > 0) {
    found.summary +=
        "The search ran " + std::to_string(result.layers_run) + " layers, " +
        format_fixed(static_cast<double>(result.layers_if_whole) / static_cast<double>(result.layers_run), 1) +
        " times fewer than whole models would have.\n";
  }
  return found;
}

}  // namespace

void run(const DropRequest& options, TerminalProgress& progress) {
  run_method(options, progress, [&](const Checkpoint& checkpoint) {
    const int64_t layers = checkpoint.config().num_layers();
    Method method{"drop", "drop"};
    if (!options.indices.empty()) {
      int64_t named = 0;
      for (const auto& [first, last] : options.indices) named += last - first + 1;
      method.layers_left = std::max<int64_t>(1, layers - named);
      method.suffix += "-" + std::to_string(method.layers_left);
      method.search = [&](const Search& in) { return drop_named(options, in); };
      return method;
    }
    const int64_t count = layers_to_go(options, layers);
    method.layers_left = layers - count;
    method.suffix += "-" + std::to_string(method.layers_left);
    const bool by_influence = options.order == "bi";
    method.samples = by_influence ? 32 : 8;
    method.use = [by_influence, layers, count](const TokenWindows&) {
      DepthUse use;
      if (by_influence) return use;
      use.streams = layers + 1;
      use.losses = layers * count;
      use.walks = static_cast<double>(count) * static_cast<double>(layers) / 2;
      return use;
    };
    method.search = [by_influence, count](const Search& in) {
      return by_influence ? drop_by_influence(in, count) : drop_by_perplexity(in, count);
    };
    return method;
  });
}

void run(const MergeRequest& options, TerminalProgress& progress) {
  run_method(options, progress, [&](const Checkpoint& checkpoint) {
    const int64_t layers = checkpoint.config().num_layers();
    Method method{"merge", "merged"};
    method.layers_left = options.target_layers ? *options.target_layers
                         : options.ratio       ? layers - share_of_layers(*options.ratio, layers)
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
    method.search = [&](const Search& in) { return merge(options, in); };
    return method;
  });
}

}  // namespace dynslice::cli
