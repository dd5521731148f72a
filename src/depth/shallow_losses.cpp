#include "dynslice/depth/shallow_losses.h"

#include <algorithm>

#include "aten.h"
#include "dynslice/support/check.h"
#include "dynslice/walk/head.h"
#include "dynslice/walk/journaled_walk.h"

namespace dynslice {
namespace {

// One of the models, and its stream once it is another than the dense model's.
struct Branch {
  Branch(const DepthPlan& plan, int64_t layers)
      : repair(plan.repair), keeps(static_cast<size_t>(layers)), fork(layers) {
    for (const std::vector<int64_t>& sources : plan.layers) {
      DYNSLICE_CHECK(sources.size() == 1, "shallow_losses: a plan merges layers");
      keeps[static_cast<size_t>(sources.front())] = true;
    }
    const auto dropped = std::find(keeps.begin(), keeps.end(), false);
    fork = dropped - keeps.begin();
    if (repair) fork = std::min(fork, repair->layer);
  }

  std::optional<Repair> repair;
  std::vector<bool> keeps;
  int64_t fork;  // the first layer that differs; the number of layers when none does
  ResidualStream stream;
};

class BranchedWalk {
 public:
  BranchedWalk(const LayerWalk& walk, const TokenWindows& windows, const std::vector<DepthPlan>& plans,
               const JournalPhase& journal)
      : walk_(walk), windows_(windows), journal_(journal) {
    for (const DepthPlan& plan : plans) {
      branches_.emplace_back(plan, layers());
      branches_.back().stream = walk.empty_stream();
      last_fork_ = std::max(last_fork_, branches_.back().fork);
    }
    trunk_ = walk.empty_stream();
  }

  std::vector<double> run() {
    run_journaled(walk_, journal_,
                  {.task = "Trying " + std::to_string(branches_.size()) + " models",
                   .tokens = passes() * windows_.tokens() / layers(),
                   .state = [&] { return state(); },
                   .begin = [&] { trunk_ = walk_.embed(windows_); },
                   .visit = [&](LayerStep& step) { visit(step); }});
    const Head head = load_head(walk_);
    std::vector<double> losses;
    for (Branch& branch : branches_) {
      ResidualStream& stream = branch.fork == layers() ? trunk_ : branch.stream;
      losses.push_back(next_token_losses(walk_, head, stream, windows_, "Losses").mean().item<double>());
      branch.stream = {};
    }
    return losses;
  }

 private:
  int64_t layers() const { return walk_.config().num_layers(); }

  // Layers that are computed, all models together.
  int64_t passes() const {
    int64_t count = last_fork_;
    for (const Branch& branch : branches_)
      count += std::count(branch.keeps.begin() + branch.fork, branch.keeps.end(), true);
    return count;
  }

  void visit(LayerStep& step) {
    const auto through = [&](const DecoderLayer& layer) {
      return [&](const at::Tensor& x) { return forward_layer(layer, step.context, x); };
    };
    for (Branch& branch : branches_) {
      if (branch.fork > step.index()) continue;
      if (branch.fork == step.index()) branch.stream = trunk_.snapshot();
      if (!branch.keeps[static_cast<size_t>(step.index())]) continue;
      const bool is_repaired = branch.repair && branch.repair->layer == step.index();
      step.transform(branch.stream, through(is_repaired ? repaired(step.layer, *branch.repair) : step.layer));
    }
    if (step.index() < last_fork_) {
      step.transform(trunk_, through(step.layer));
    } else {
      trunk_ = walk_.empty_stream();
    }
  }

  WalkState state() {
    WalkState state;
    state.keep("trunk", trunk_);
    for (size_t i = 0; i < branches_.size(); ++i) state.keep("model " + std::to_string(i), branches_[i].stream);
    return state;
  }

  const LayerWalk& walk_;
  const TokenWindows& windows_;
  const JournalPhase& journal_;
  std::vector<Branch> branches_;
  ResidualStream trunk_;  // the dense model's
  int64_t last_fork_ = 0;
};

}  // namespace

std::vector<double> shallow_losses(const LayerWalk& walk, const TokenWindows& windows,
                                   const std::vector<DepthPlan>& plans, const JournalPhase& journal) {
  return BranchedWalk(walk, windows, plans, journal).run();
}

}  // namespace dynslice
