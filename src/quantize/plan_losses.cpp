#include "dynslice/quantize/plan_losses.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <utility>

#include "aten.h"
#include "dynslice/quantize/quant_plan.h"
#include "dynslice/tensor/kernels.h"
#include "dynslice/tensor/second_moment.h"
#include "dynslice/walk/head.h"
#include "dynslice/walk/journaled_walk.h"
#include "quantize/layer_sink.h"

namespace dynslice {
namespace {

// Plans that are alike as far as the walk has come.
using Branch = std::vector<size_t>;

class PlanWalk {
 public:
  PlanWalk(const LayerWalk& walk, const TokenWindows& windows, const TrialQuantizer& quantizer,
           const std::vector<std::vector<int>>& plans, const JournalPhase& journal)
      : walk_(walk),
        windows_(windows),
        quantizer_(quantizer),
        plans_(plans),
        journal_(journal),
        calibration_(walk.empty_stream()),
        streams_(plans.size(), walk.empty_stream()) {}

  std::vector<double> run() {
    const int64_t calibration_tokens = quantizer_.calibration != nullptr ? quantizer_.calibration->tokens() : 0;
    run_journaled(walk_, journal_,
                  {.task = "Trying " + std::to_string(plans_.size()) + " plans",
                   .tokens = passes() * windows_.tokens() / layers() + calibration_tokens,
                   .state = [&] { return state(); },
                   .begin = [&] { begin(); },
                   .visit = [&](LayerStep& step) { visit(step); },
                   .weights = at::kFloat});
    const Head head = load_head(walk_);
    std::vector<double> losses(plans_.size());
    for (const Branch& branch : branches_before(layers())) {
      ResidualStream stream = std::exchange(streams_[branch.front()], walk_.empty_stream());
      const double loss = next_token_losses(walk_, head, std::move(stream), windows_, "Losses").mean().item<double>();
      for (const size_t plan : branch) losses[plan] = loss;
    }
    return losses;
  }

 private:
  int64_t layers() const { return walk_.config().num_layers(); }

  std::vector<int> prefix(size_t plan, int64_t layer) const {
    return {plans_[plan].begin(), plans_[plan].begin() + layer};
  }

  // Layers that are computed, all models together.
  int64_t passes() const {
    int64_t count = 0;
    for (int64_t layer = 1; layer <= layers(); ++layer) {
      std::set<std::vector<int>> distinct;
      for (size_t plan = 0; plan < plans_.size(); ++plan) distinct.insert(prefix(plan, layer));
      count += static_cast<int64_t>(distinct.size());
    }
    return count;
  }

  void visit(LayerStep& step) {
    std::set<int> levels;
    for (const std::vector<int>& plan : plans_) levels.insert(plan[static_cast<size_t>(step.index())]);
    const std::map<int, DecoderLayer> quantized = quantize(step, levels, pass_calibration(step, *levels.rbegin() > 0));
    for (const Branch& branch : branches_before(step.index())) {
      std::map<int, Branch> parts;
      for (const size_t plan : branch) parts[plans_[plan][static_cast<size_t>(step.index())]].push_back(plan);
      const ResidualStream entering = std::exchange(streams_[branch.front()], walk_.empty_stream());
      for (const auto& [bits, members] : parts) {
        ResidualStream& leaving = streams_[members.front()] = entering.snapshot();
        const DecoderLayer& layer = quantized.at(bits);
        step.transform(leaving, [&](const at::Tensor& x) { return forward_layer(layer, step.context, x); });
      }
    }
  }

  // Passes the calibration text through the layer as it is; the moments of what its matrices read, in their order.
  std::vector<SecondMoment> pass_calibration(LayerStep& step, bool is_quantized) {
    std::vector<SecondMoment> moments;
    if (quantizer_.calibration == nullptr) return moments;
    const DecoderLayer layer = with_dtype(step.layer, walk_.options().dtype);
    for (const auto linear : matrices_of(layer.shape))
      moments.emplace_back((layer.*linear).weight.size(1), walk_.options().device);
    const auto add_to = [&](size_t index) {
      return [&moments, is_quantized, index](const at::Tensor& read) {
        if (is_quantized) moments[index].add(read.to(at::kFloat));
      };
    };
    const size_t mlp = layer.shape.has_attention() ? 2 : 0;
    step.transform(calibration_, [&](const at::Tensor& x) {
      const at::Tensor middle =
          forward_half(kAttentionHalf, layer, step.context, x, {.input = add_to(0), .inner = add_to(1)});
      return forward_half(kMlpHalf, layer, step.context, middle, {.input = add_to(mlp), .inner = add_to(mlp + 1)});
    });
    return moments;
  }

  // The layer at every level, in the dtype of the forward.
  std::map<int, DecoderLayer> quantize(const LayerStep& step, const std::set<int>& levels,
                                       std::vector<SecondMoment> moments) const {
    std::map<int, DecoderLayer> quantized;
    for (const int bits : levels) quantized[bits] = step.layer;
    std::map<int, LayerSink> sinks;
    for (const int bits : levels) {
      if (bits == 0 || !quantizer_.sink) continue;
      sinks.try_emplace(bits, walk_.config(), step.index(),
                        [this, bits](const MatrixRows& rows) { quantizer_.sink(bits, rows); });
    }
    const auto linears = matrices_of(step.layer.shape);
    for (size_t i = 0; i < linears.size(); ++i) {
      const at::Tensor whole = (step.layer.*linears[i]).weight.cpu();
      at::Tensor moment;
      if (!moments.empty())
        moment = moments[i].take("what the matrices of layer " + std::to_string(step.index()) + " read");
      std::map<int64_t, Gptq> solvers;  // by their units: levels with groups of one size share the factor
      for (const int bits : levels) {
        if (bits == 0) continue;
        const QuantFormat format = quantizer_.format_at(bits, whole.size(1));
        const int64_t unit = grid_unit(format, whole.size(1));
        const bool is_rounded = !moment.defined() || is_fine(format);
        if (!is_rounded && !solvers.contains(unit)) solvers.try_emplace(unit, moment.clone(), unit, quantizer_.gptq);
        const QuantizedMatrix matrix =
            is_rounded ? round_to_nearest(whole, format) : solvers.at(unit).quantize(whole, format);
        (quantized[bits].*linears[i]).weight = matrix.values().to(walk_.options().device);
        if (quantizer_.sink) sinks.at(bits).write(matrix);
      }
    }
    for (auto& [bits, layer] : quantized) layer = with_dtype(std::move(layer), walk_.options().dtype);
    return quantized;
  }

  void begin() {
    if (quantizer_.calibration != nullptr) calibration_ = walk_.embed(*quantizer_.calibration);
    streams_.front() = walk_.embed(windows_);
  }

  // Plans that are alike up to this layer are one branch.
  std::vector<Branch> branches_before(int64_t layer) const {
    std::map<std::vector<int>, Branch> groups;
    for (size_t plan = 0; plan < plans_.size(); ++plan) groups[prefix(plan, layer)].push_back(plan);
    std::vector<Branch> branches;
    for (auto& [bits, members] : groups) branches.push_back(std::move(members));
    return branches;
  }

  WalkState state() {
    WalkState state;
    state.keep("calibration", calibration_);
    for (size_t plan = 0; plan < streams_.size(); ++plan) state.keep("plan " + std::to_string(plan), streams_[plan]);
    return state;
  }

  const LayerWalk& walk_;
  const TokenWindows& windows_;
  const TrialQuantizer& quantizer_;
  const std::vector<std::vector<int>>& plans_;
  const JournalPhase& journal_;
  ResidualStream calibration_;
  std::vector<ResidualStream> streams_;  // of a branch in the place of its first plan; the others are empty
};

// The level below `bits`; 0 when there is none.
int next_level(const std::vector<int>& levels, int bits) {
  const auto place = std::ranges::find(levels, bits);
  return place + 1 < levels.end() ? *(place + 1) : 0;
}

// One way to go on from a plan.
struct Move {
  int64_t layer = 0;
  int bits = 0;
  double loss_rise = 0;
  double per_bit = 0;  // of the layer's weights all together
};

std::vector<Move> measure_moves(const LayerWalk& walk, const TokenWindows& windows, const TrialQuantizer& quantizer,
                                const std::vector<int>& levels, const std::vector<int>& bits,
                                const JournalPhase& journal) {
  std::vector<Move> moves;
  std::vector<std::vector<int>> plans = {bits};
  for (size_t layer = 0; layer < bits.size(); ++layer) {
    const int lower = next_level(levels, bits[layer]);
    if (lower == 0) continue;
    moves.push_back({static_cast<int64_t>(layer), lower});
    plans.push_back(bits);
    plans.back()[layer] = lower;
  }
  std::vector<double> losses;
  if (const auto known = journal.result()) {
    losses = known->get<std::vector<double>>();
  } else {
    losses = plan_losses(walk, windows, quantizer, plans, journal);
    journal.finish(losses);
  }
  for (size_t i = 0; i < moves.size(); ++i) {
    Move& move = moves[i];
    const int saved = bits[static_cast<size_t>(move.layer)] - move.bits;
    move.loss_rise = losses[i + 1] - losses.front();
    move.per_bit = move.loss_rise / (saved * static_cast<double>(layer_weights(walk.config(), move.layer)));
  }
  std::ranges::stable_sort(moves, {}, &Move::per_bit);
  return moves;
}

}  // namespace

std::vector<double> plan_losses(const LayerWalk& walk, const TokenWindows& windows, const TrialQuantizer& quantizer,
                                const std::vector<std::vector<int>>& plans, const JournalPhase& journal) {
  return PlanWalk(walk, windows, quantizer, plans, journal).run();
}

SearchResult search_plan(const LayerWalk& walk, const TokenWindows& windows, const TrialQuantizer& quantizer,
                         const std::vector<int>& levels, double average, int64_t rounds,
                         const std::function<JournalPhase(const std::string& name)>& phase) {
  SearchResult result;
  result.bits.assign(static_cast<size_t>(walk.config().num_layers()), levels.front());
  const auto mean = [&] { return average_bits(walk.config(), result.bits); };
  const double start = mean();
  for (int64_t round = 1; mean() > average && round <= rounds; ++round) {
    // As far as this round's share of the way; the last one goes all of it.
    const double until = start + (average - start) * static_cast<double>(round) / static_cast<double>(rounds);
    if (mean() <= until) continue;
    const std::string name = "search " + std::to_string(round) + " of " + std::to_string(rounds);
    for (const Move& move : measure_moves(walk, windows, quantizer, levels, result.bits, phase(name))) {
      if (mean() <= std::max(until, average)) break;
      result.bits[static_cast<size_t>(move.layer)] = move.bits;
      result.steps.push_back({move.layer, move.bits, move.loss_rise});
    }
    // Levels far below may be needed before the average is reached; each round goes down one for every layer at most.
    if (round == rounds && mean() > average && rounds < 64) ++rounds;
  }
  return result;
}

}  // namespace dynslice
