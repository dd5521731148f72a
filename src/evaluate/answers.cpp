#include "dynslice/evaluate/answers.h"

#include <algorithm>
#include <numeric>
#include <span>

#include "aten.h"
#include "dynslice/evaluate/estimate.h"
#include "dynslice/tensor/prefix_tree.h"
#include "dynslice/walk/head.h"
#include "dynslice/walk/token_scores.h"
#include "dynslice/walk/tree_walk.h"

namespace dynslice {
namespace {

// What goes through the model: the last token is only predicted.
std::span<const int32_t> input_of(const Answer& answer) { return std::span(answer.ids).first(answer.ids.size() - 1); }

// Indices of the answers such that those with the longest beginnings in common are neighbours.
std::vector<size_t> sorted_by_tokens(const std::vector<Answer>& answers) {
  std::vector<size_t> order(answers.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return answers[a].ids < answers[b].ids; });
  return order;
}

// Answers that are walked together.
struct Turn {
  PrefixTree tree;
  std::vector<TokenTarget> targets;  // of answer after answer
  size_t end = 0;                    // of the sorted answers
};

// The answers from `first` on whose rows there is room for, at least one.
Turn next_turn(const std::vector<Answer>& answers, const std::vector<size_t>& order, size_t first, int64_t rows) {
  Turn turn;
  for (turn.end = first; turn.end < order.size(); ++turn.end) {
    const Answer& answer = answers[order[turn.end]];
    const auto input = input_of(answer);
    if (turn.end > first && turn.tree.rows() + turn.tree.rows_to_add(input) > rows) break;
    const std::vector<int64_t>& path = turn.tree.add(input);
    for (size_t i = answer.ids.size() - static_cast<size_t>(answer.scored); i < answer.ids.size(); ++i) {
      turn.targets.push_back({path[i - 1], answer.ids[i]});
    }
  }
  return turn;
}

// Walks the answers through the model in turns. Between layers the journal keeps the turn, its stream, and the scores
// of the turns before.
class AnswerWalk {
 public:
  AnswerWalk(const LayerWalk& walk, const std::vector<Answer>& answers, const AnswerOptions& options)
      : walk_(walk), answers_(answers), options_(options), order_(sorted_by_tokens(answers)), head_(load_head(walk)) {
    const int64_t row_bytes = 4 * walk.config().hidden_size;
    rows_ = std::max<int64_t>(1, options.stream_bytes / row_bytes);
    scores_ = at::zeros({static_cast<int64_t>(answers.size()), 2}, at::kDouble);
  }

  std::vector<AnswerScore> run() {
    restore();
    while (first_ < order_.size()) {
      Turn turn = next_turn(answers_, order_, first_, rows_);
      if (stream_.chunks.empty()) stream_ = walk_.embed(rows_as_windows(turn.tree), positions_of_rows(turn.tree));
      const std::string suffix = options_.title + part(turn.end);
      run_tree(walk_, "Answers" + suffix, turn.tree, stream_, {first_layer_, [&](int64_t next) { save(next); }});
      take(turn, score_tokens(walk_, head_, std::move(stream_), turn.targets, "Likelihoods" + suffix));
      stream_ = {};
      first_layer_ = 0;
      first_ = turn.end;
    }
    return result();
  }

 private:
  // " (answers 1 to 900 of 2000)"; nothing when all are walked together.
  std::string part(size_t end) const {
    if (first_ == 0 && end == order_.size()) return "";
    return " (" + std::to_string(first_ + 1) + " to " + std::to_string(end) + " of " + std::to_string(order_.size()) +
           ")";
  }

  // Adds the targets' scores [targets, 2] up to those of their answers.
  void take(const Turn& turn, const at::Tensor& of_targets) {
    const auto target = of_targets.accessor<double, 2>();
    auto score = scores_.accessor<double, 2>();
    int64_t next = 0;
    for (size_t i = first_; i < turn.end; ++i) {
      const auto place = static_cast<int64_t>(order_[i]);
      double sum = 0, greedy = 1;
      for (int64_t left = answers_[order_[i]].scored; left > 0; --left, ++next) {
        sum += target[next][0];
        greedy = std::min(greedy, target[next][1]);
      }
      score[place][0] = sum;
      score[place][1] = greedy;
    }
  }

  std::vector<AnswerScore> result() const {
    std::vector<AnswerScore> result;
    const auto score = scores_.accessor<double, 2>();
    for (int64_t i = 0; i < scores_.size(0); ++i) result.push_back({score[i][0], score[i][1] != 0});
    return result;
  }

  WalkState state() {
    WalkState state;
    state.keep("rows", rows_);  // the free memory may be another one when the run goes on
    state.keep("first", first_);
    state.keep_on_host("scores", scores_);
    state.keep("stream", stream_);
    return state;
  }

  void restore() {
    stream_ = walk_.empty_stream();
    first_layer_ = options_.journal.restore(state(), walk_.options().device).value_or(0);
  }

  void save(int64_t next) { options_.journal.save(next, walk_.config().num_layers(), state()); }

  const LayerWalk& walk_;
  const std::vector<Answer>& answers_;
  const AnswerOptions& options_;
  std::vector<size_t> order_;
  Head head_;
  int64_t rows_ = 0;  // that a turn may have
  size_t first_ = 0;  // of the turn, among the sorted answers
  int64_t first_layer_ = 0;
  at::Tensor scores_;  // [answers, 2], in the order of the answers
  ResidualStream stream_;
};

}  // namespace

std::vector<AnswerScore> score_answers(const Checkpoint& checkpoint, const ComputeOptions& compute,
                                       const std::vector<Answer>& answers, const AnswerOptions& options,
                                       ProgressSink& progress) {
  const LayerWalk walk(checkpoint, compute, /*window_length=*/1, progress);
  return AnswerWalk(walk, answers, options).run();
}

AnswerAmount count_rows(const std::vector<Answer>& answers) {
  AnswerAmount amount;
  std::span<const int32_t> before;
  for (const size_t index : sorted_by_tokens(answers)) {
    const auto input = input_of(answers[index]);
    const auto shared = std::mismatch(before.begin(), before.end(), input.begin(), input.end()).second - input.begin();
    amount.rows += static_cast<int64_t>(input.size()) - shared;
    amount.longest = std::max(amount.longest, static_cast<int64_t>(input.size()));
    before = input;
  }
  return amount;
}

ResourceEstimate estimate_answers(const Checkpoint& checkpoint, const ComputeOptions& compute, AnswerAmount amount,
                                  int64_t stream_bytes) {
  ResourceEstimate estimate = estimate_perplexity(checkpoint, compute, {amount.rows, 1}, stream_bytes);
  int64_t path = 0;
  for (const LayerShape& shape : checkpoint.config().layers)
    path = std::max(path, shape.num_key_value_heads * shape.head_dim);
  path *= 2 * amount.longest * static_cast<int64_t>(c10::elementSize(compute.dtype));
  estimate.parts.push_back({"open_sequence", static_cast<uint64_t>(path)});
  return estimate;
}

}  // namespace dynslice
