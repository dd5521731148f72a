#include "dynslice/depth/repair.h"

#include <algorithm>
#include <numeric>

#include "aten.h"
#include "dynslice/model/architecture.h"
#include "dynslice/support/error.h"
#include "dynslice/tensor/inverse_norms.h"
#include "dynslice/tensor/ridge_fit.h"
#include "dynslice/walk/journaled_walk.h"

namespace dynslice {
namespace {

// Adds tokens to the fit of the features that are mapped to the error that the identity leaves, y - x_entered, each
// token weighing 1 / ‖y‖². All [tokens, d] fp32.
void add_tokens(RidgeFit& fit, const at::Tensor& features, const at::Tensor& entered, const at::Tensor& target) {
  const at::Tensor root_weight = inverse_norms(target);
  fit.add(features * root_weight, (target - entered) * root_weight);
}

// I + X: the map that is as near to the identity as the ridge asks.
at::Tensor map_of(RidgeFit& fit, double ridge, int64_t start) {
  const at::Tensor difference = fit.solve(ridge, "the residual stream around layer " + std::to_string(start));
  return (difference.t() + at::eye(difference.size(0), difference.options())).to(at::kFloat).contiguous();
}

// A cut while the walk is between the layer before it and its last one.
struct Cut {
  int64_t start = 0;
  ResidualStream entered;   // x_start
  ResidualStream features;  // what is mapped
  at::Tensor map;           // once it is solved
};

class RepairWalk {
 public:
  RepairWalk(const LayerWalk& walk, const std::vector<int64_t>& starts, int64_t count, const RepairOptions& options)
      : walk_(walk), count_(count), options_(options) {
    for (const int64_t start : starts) cuts_.push_back({start, walk.empty_stream(), walk.empty_stream(), {}});
  }

  std::vector<Repair> run(const TokenWindows& windows, const JournalPhase& journal) {
    stream_ = walk_.empty_stream();
    run_journaled(walk_, journal,
                  {.task = "Fitting repairs",
                   .tokens = windows.tokens(),
                   .state = [&] { return state(); },
                   .begin = [&] { stream_ = walk_.embed(windows); },
                   .visit = [&](LayerStep& step) { walk_layer(step); }});
    std::vector<Repair> repairs;
    for (const Cut& cut : cuts_) repairs.push_back({cut.start - 1, cut.map.to(at::kCPU), options_.on_stream});
    return repairs;
  }

 private:
  Cut* cut_at(int64_t start) {
    const auto found = std::ranges::find(cuts_, start, &Cut::start);
    return found == cuts_.end() ? nullptr : &*found;
  }

  void walk_layer(LayerStep& step) {
    Cut* beginning = cut_at(step.index() + 1);
    Cut* ending = cut_at(step.index() + 1 - count_);
    const bool keep_mlp = beginning != nullptr && !options_.on_stream;
    std::optional<RidgeFit> fit;
    if (ending != nullptr) fit.emplace(walk_.config().hidden_size, walk_.config().hidden_size, walk_.options().device);
    if (keep_mlp) beginning->features.chunks.resize(stream_.chunks.size());
    size_t chunk = 0;
    step.transform(stream_, [&](const at::Tensor& x) {
      const at::Tensor middle = forward_half(kAttentionHalf, step.layer, step.context, x);
      at::Tensor added = half_branch(kMlpHalf, step.layer, step.context, middle);
      if (keep_mlp) beginning->features.replace(chunk, added.to(at::kFloat, /*non_blocking=*/false, /*copy=*/true));
      at::Tensor y = scaled(kMlpHalf, step.layer, add_residual(added, middle, step.layer.mlp_shortcut));
      if (ending != nullptr) add_chunk(*fit, *ending, chunk, y);
      ++chunk;
      return y;
    });
    if (beginning != nullptr) {
      beginning->entered = stream_.snapshot();
      if (options_.on_stream) beginning->features = stream_.snapshot();
    }
    if (ending != nullptr) {
      ending->map = map_of(*fit, options_.ridge, ending->start);
      ending->entered = ending->features = walk_.empty_stream();
    }
  }

  static void add_chunk(RidgeFit& fit, const Cut& cut, size_t chunk, const at::Tensor& y) {
    const auto rows = [&](const at::Tensor& x) { return x.to(y.device()).reshape({-1, x.size(-1)}); };
    add_tokens(fit, rows(cut.features.chunks[chunk]), rows(cut.entered.chunks[chunk]), rows(y));
    if (!cut.entered.store) return;
    cut.entered.store->drop_pages(cut.entered.chunks[chunk]);
    cut.entered.store->drop_pages(cut.features.chunks[chunk]);
  }

  WalkState state() {
    WalkState state;
    state.keep("stream", stream_);
    for (Cut& cut : cuts_) {
      const std::string name = std::to_string(cut.start);
      state.keep("entered " + name, cut.entered);
      state.keep("features " + name, cut.features);
      state.keep("map " + name, cut.map);
    }
    return state;
  }

  const LayerWalk& walk_;
  const int64_t count_;
  const RepairOptions& options_;
  ResidualStream stream_;
  std::vector<Cut> cuts_;
};

}  // namespace

void check_repairable(const Checkpoint& checkpoint) {
  check_depth(checkpoint);
  if (architecture_of(checkpoint.config()).can_fold_maps()) return;
  throw_error(ErrorKind::kUsage, checkpoint.path().string(), ": ", checkpoint.config().model_type,
              " norms what its MLPs write, so that no matrix can be folded into them; give --replace layer, swiglu, "
              "ffn or none");
}

std::vector<Repair> fit_repairs(const LayerWalk& walk, const TokenWindows& windows, const std::vector<int64_t>& starts,
                                int64_t count, const RepairOptions& options, const JournalPhase& journal) {
  check_repairable(walk.checkpoint());
  const int64_t layers = walk.config().num_layers();
  for (const int64_t start : starts) {
    if (start >= 1 && count >= 1 && start + count <= layers) continue;
    throw_error(ErrorKind::kUsage, "layers ", start, " to ", start + count - 1,
                " cannot be repaired: a layer must stay before them, and the model has ", layers);
  }
  return RepairWalk(walk, starts, count, options).run(windows, journal);
}

DepthPlan plan_without_window(int64_t layers, int64_t start, int64_t count, const std::optional<Repair>& repair) {
  std::vector<int64_t> dropped(static_cast<size_t>(count));
  std::iota(dropped.begin(), dropped.end(), start);
  DepthPlan plan = plan_without(layers, dropped);
  plan.repair = repair;
  return plan;
}

}  // namespace dynslice
