#include "dynslice/walk/token_scores.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "aten.h"
#include "dynslice/support/error.h"
#include "dynslice/tensor/kernels.h"
#include "dynslice/tensor/logit_blocks.h"

namespace dynslice {
namespace {

// The targets in order of their rows, and what is known of rows and targets so far.
class Scores {
 public:
  Scores(const std::vector<TokenTarget>& targets, at::Device device) : order_(targets.size()) {
    std::iota(order_.begin(), order_.end(), size_t{0});
    std::stable_sort(order_.begin(), order_.end(), [&](size_t a, size_t b) { return targets[a].row < targets[b].row; });
    std::vector<int64_t> places, ids;
    for (const size_t target : order_) {
      if (rows_.empty() || rows_.back() != targets[target].row) {
        rows_.push_back(targets[target].row);
        first_targets_.push_back(static_cast<int64_t>(ids.size()));
      }
      places.push_back(static_cast<int64_t>(rows_.size()) - 1);
      ids.push_back(targets[target].id);
    }
    first_targets_.push_back(static_cast<int64_t>(ids.size()));
    const auto options = at::TensorOptions().dtype(at::kDouble).device(device);
    const int64_t rows = static_cast<int64_t>(rows_.size());
    places_ = at::tensor(places, at::kLong).to(device);
    ids_ = at::tensor(ids, at::kLong).to(device);
    log_sum_ = at::full({rows}, -INFINITY, options);
    top_ = at::full({rows}, -INFINITY, options);
    target_logit_ = at::zeros({static_cast<int64_t>(ids.size())}, options);
  }

  // Rows that have a target, rising, each once.
  const std::vector<int64_t>& rows() const { return rows_; }

  // Adds the logits [n, columns] that entries `begin` on of the vocabulary have at rows() [first, first + n).
  void add(const at::Tensor& logits, int64_t begin, int64_t first) {
    const int64_t count = logits.size(0);
    at::Tensor log_sum = log_sum_.narrow(0, first, count), top = top_.narrow(0, first, count);
    log_sum.copy_(at::logaddexp(log_sum, kernels::logsumexp_rows(logits)));
    top.copy_(at::maximum(top, logits.amax(1).to(at::kDouble)));
    const int64_t from = first_targets_[static_cast<size_t>(first)];
    const int64_t targets = first_targets_[static_cast<size_t>(first + count)] - from;
    const at::Tensor column = ids_.narrow(0, from, targets) - begin;
    const at::Tensor inside = column.ge(0).logical_and(column.lt(logits.size(1)));
    const at::Tensor place = (places_.narrow(0, from, targets) - first) * logits.size(1);
    const at::Tensor picked =
        logits.reshape({-1}).index_select(0, place + column.clamp(0, logits.size(1) - 1)).to(at::kDouble);
    at::Tensor known = target_logit_.narrow(0, from, targets);
    known.copy_(at::where(inside, picked, known));
  }

  // In the order of the targets that were given.
  at::Tensor result() const {
    const at::Tensor scores = at::stack({target_logit_ - log_sum_.index_select(0, places_),
                                         target_logit_.ge(top_.index_select(0, places_)).to(at::kDouble)},
                                        1)
                                  .cpu();
    std::vector<int64_t> order(order_.begin(), order_.end());
    at::Tensor sorted = at::empty_like(scores);
    sorted.index_copy_(0, at::tensor(order, at::kLong), scores);
    return sorted;
  }

 private:
  std::vector<size_t> order_;           // of the targets, by their rows
  std::vector<int64_t> rows_;           // that have targets
  std::vector<int64_t> first_targets_;  // of every such row, among the ordered ones; and the number of all
  at::Tensor places_, ids_;             // of the ordered targets: the place of the row in rows_, and the token
  at::Tensor log_sum_, top_;            // of rows_
  at::Tensor target_logit_;             // of the ordered targets
};

// Leaves what the output matrix reads, for rows that have targets; chunks without any become empty.
void keep_scored_rows(const LayerWalk& walk, const Head& head, const Scores& scores, ResidualStream& stream) {
  int64_t begin = 0;
  auto next = scores.rows().begin();
  stream.transform([&](const at::Tensor& chunk) {
    const at::Tensor x = chunk.reshape({-1, chunk.size(-1)});
    const int64_t end = begin + x.size(0);
    std::vector<int64_t> chosen;
    for (; next != scores.rows().end() && *next < end; ++next) chosen.push_back(*next - begin);
    begin = end;
    const at::Tensor rows = x.index_select(0, at::tensor(chosen, at::kLong).to(x.device()));
    return rows.size(0) == 0 ? at::empty({0, head.columns}, x.options().dtype(walk.options().dtype))
                             : head_input(head, rows).to(walk.options().dtype);
  });
}

void check_ids(const LayerWalk& walk, const Head& head, const std::vector<TokenTarget>& targets) {
  for (const TokenTarget& target : targets) {
    if (target.id >= 0 && target.id < head.vocab_size) continue;
    throw_error(ErrorKind::kBadInput, walk.checkpoint().path().string(), ": the tokenizer gave id ", target.id,
                " but the model's vocabulary has ", head.vocab_size,
                " entries; the tokenizer belongs to another model");
  }
}

}  // namespace

at::Tensor score_tokens(const LayerWalk& walk, const Head& head, ResidualStream stream,
                        const std::vector<TokenTarget>& targets, const std::string& task) {
  check_ids(walk, head, targets);
  Scores scores(targets, walk.options().device);
  keep_scored_rows(walk, head, scores, stream);
  const LogitBlock at_once = logit_block(walk.options().device);
  const int64_t vocabulary_blocks = (head.vocab_size + kVocabularyBlock - 1) / kVocabularyBlock;
  ProgressTask progress(walk.progress(), task, static_cast<int64_t>(scores.rows().size()) * vocabulary_blocks,
                        "tokens");
  for (int64_t begin = 0; begin < head.vocab_size; begin += kVocabularyBlock) {
    const at::Tensor matrix = head.load_rows(begin, std::min(head.vocab_size, begin + kVocabularyBlock));
    int64_t first = 0;
    stream.visit([&](const at::Tensor& chunk) {
      if (chunk.size(0) == 0) return;
      for (const at::Tensor& block : chunk.split(at_once.tokens)) {
        for (int64_t row = 0; row < matrix.size(0); row += at_once.columns) {
          const at::Tensor part = matrix.narrow(0, row, std::min(at_once.columns, matrix.size(0) - row));
          scores.add(logits_of(head, block, part), begin + row, first);
        }
        first += block.size(0);
        progress.advance(block.size(0));
      }
    });
  }
  const at::Tensor result = scores.result();
  check_likelihoods(result, walk.checkpoint());
  return result;
}

}  // namespace dynslice
