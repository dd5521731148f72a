#include "dynslice/depth/repair.h"

#include <algorithm>
#include <numeric>

#include "aten.h"
#include "dynslice/support/error.h"
#include "dynslice/tensor/inverse_norms.h"
#include "dynslice/tensor/kernels.h"
#include "dynslice/walk/journaled_walk.h"

namespace dynslice {
namespace {

// Rows whose products are summed in fp32 before they go to the fp64 sum.
constexpr int64_t kRows = 512;

// The least squares of one cut, collected while the text passes: Σ w f fᵀ and Σ w f eᵀ of the features f that are
// mapped and the error e = x_{s+count} - x_s that the identity leaves.
class Fit {
 public:
  Fit(int64_t width, at::Device device)
      : moment_(at::zeros({width, width}, at::TensorOptions().dtype(at::kDouble).device(device))),
        cross_(at::zeros_like(moment_)) {}

  at::Tensor& moment() { return moment_; }
  at::Tensor& cross() { return cross_; }

  // All [tokens, d] fp32.
  void add(const at::Tensor& features, const at::Tensor& entered, const at::Tensor& target) {
    const at::Tensor root_weight = inverse_norms(target);
    const at::Tensor f = features * root_weight, e = (target - entered) * root_weight;
    for (int64_t row = 0; row < f.size(0); row += kRows) {
      const int64_t rows = std::min(kRows, f.size(0) - row);
      const at::Tensor left = f.narrow(0, row, rows).t();
      moment_.add_(kernels::matmul(left, f.narrow(0, row, rows)));
      cross_.add_(kernels::matmul(left, e.narrow(0, row, rows)));
    }
  }

  // I + ((Σ w f fᵀ + λ I)⁻¹ Σ w f eᵀ)ᵀ: the map that is as near to the identity as the ridge asks.
  at::Tensor solve(double ridge, int64_t start) const {
    at::Tensor regular = moment_.clone();
    regular.diagonal().add_(std::max(ridge * moment_.diagonal().mean().item<double>(), 1e-30));
    if (!at::isfinite(regular).all().item<bool>() || !at::isfinite(cross_).all().item<bool>()) {
      throw_error(ErrorKind::kBadInput, "NaN or Inf in the residual stream around layer ", start,
                  "; the model's weights are damaged, or too large for the dtype (try --dtype fp32)");
    }
    const at::Tensor difference = at::cholesky_solve(cross_, at::linalg_cholesky(regular));
    return (difference.t() + at::eye(regular.size(0), regular.options())).to(at::kFloat).contiguous();
  }

 private:
  at::Tensor moment_, cross_;  // [d, d] fp64
};

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
    std::optional<Fit> fit;
    if (ending != nullptr) fit.emplace(walk_.config().hidden_size, walk_.options().device);
    if (keep_mlp) beginning->features.chunks.resize(stream_.chunks.size());
    size_t chunk = 0;
    step.transform(stream_, [&](const at::Tensor& x) {
      const at::Tensor middle = forward_half(kAttentionHalf, step.layer, step.context, x);
      at::Tensor added = half_branch(kMlpHalf, step.layer, step.context, middle);
      if (keep_mlp) beginning->features.replace(chunk, added.to(at::kFloat, /*non_blocking=*/false, /*copy=*/true));
      at::Tensor y = add_residual(std::move(added), middle, step.layer.mlp_shortcut);
      if (ending != nullptr) add_chunk(*fit, *ending, chunk, y);
      ++chunk;
      return y;
    });
    if (beginning != nullptr) {
      beginning->entered = stream_.snapshot();
      if (options_.on_stream) beginning->features = stream_.snapshot();
    }
    if (ending != nullptr) {
      ending->map = fit->solve(options_.ridge, ending->start);
      ending->entered = ending->features = walk_.empty_stream();
    }
  }

  static void add_chunk(Fit& fit, const Cut& cut, size_t chunk, const at::Tensor& y) {
    const auto rows = [&](const at::Tensor& x) { return x.to(y.device()).reshape({-1, x.size(-1)}); };
    fit.add(rows(cut.features.chunks[chunk]), rows(cut.entered.chunks[chunk]), rows(y));
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

std::vector<Repair> fit_repairs(const LayerWalk& walk, const TokenWindows& windows, const std::vector<int64_t>& starts,
                                int64_t count, const RepairOptions& options, const JournalPhase& journal) {
  check_depth(walk.checkpoint());
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
