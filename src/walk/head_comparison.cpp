// Two models' heads side by side.
#include <algorithm>

#include "aten.h"
#include "dynslice/tensor/distribution_pair.h"
#include "dynslice/tensor/logit_blocks.h"
#include "dynslice/walk/head.h"

namespace dynslice {
namespace {

// [tokens] to [windows, T - 1], on the CPU: the last position of a window predicts nothing.
at::Tensor of_next_tokens(const at::Tensor& values, const TokenWindows& windows) {
  return values.cpu().view({windows.count, windows.length}).narrow(1, 0, windows.length - 1).contiguous();
}

at::Tensor finite_losses(const at::Tensor& log_sums, const at::Tensor& target_logits, const ComparedHead& side,
                         const TokenWindows& windows) {
  at::Tensor losses = of_next_tokens(log_sums - target_logits, windows);
  check_likelihoods(losses, side.walk.checkpoint());
  return losses;
}

// What the comparison adds up.
struct Sums {
  const Head &head, &reference_head;
  DistributionPairs pairs;
  at::Tensor targets, picked, reference_picked;  // [tokens]: ids, and their logits in fp64

  // Some tokens from `first` on, and rows [begin, begin + rows.size(0)) of both output matrices.
  void add(const at::Tensor& x, const at::Tensor& reference_x, const at::Tensor& rows, const at::Tensor& reference_rows,
           int64_t first, int64_t begin) {
    const at::Tensor logits = logits_of(head, x, rows).to(at::kFloat);
    const at::Tensor reference_logits = logits_of(reference_head, reference_x, reference_rows).to(at::kFloat);
    const at::Tensor wanted = targets.narrow(0, first, x.size(0));
    pick_targets(picked.narrow(0, first, x.size(0)), logits, wanted, begin);
    pick_targets(reference_picked.narrow(0, first, x.size(0)), reference_logits, wanted, begin);
    pairs.add(first, begin, logits, reference_logits);
  }
};

}  // namespace

NextTokenComparison compare_next_tokens(ComparedHead model, ComparedHead reference, const TokenWindows& windows,
                                        const std::string& task) {
  const at::Device device = model.walk.options().device;
  const int64_t vocab_size = model.head.vocab_size;
  const auto fp64 = at::TensorOptions().dtype(at::kDouble).device(device);
  Sums sums{model.head,
            reference.head,
            DistributionPairs(windows.tokens(), device),
            next_ids(windows, device),
            at::zeros({windows.tokens()}, fp64),
            at::zeros({windows.tokens()}, fp64)};
  for (ComparedHead* side : {&model, &reference})
    side->stream.transform([&](const at::Tensor& x) { return head_input(side->head, x); });

  const LogitBlock at_once = logit_block(device);
  const int64_t vocabulary_blocks = (vocab_size + kVocabularyBlock - 1) / kVocabularyBlock;
  ProgressTask progress(model.walk.progress(), task, windows.tokens() * vocabulary_blocks, "tokens");
  for (int64_t begin = 0; begin < vocab_size; begin += kVocabularyBlock) {
    const int64_t end = std::min(vocab_size, begin + kVocabularyBlock);
    const at::Tensor rows = model.head.load_rows(begin, end), reference_rows = reference.head.load_rows(begin, end);
    int64_t first = 0;
    visit_both(model.stream, reference.stream, [&](const at::Tensor& chunk, const at::Tensor& reference_chunk) {
      const auto blocks = chunk.view({-1, model.head.columns}).split(at_once.tokens);
      const auto reference_blocks = reference_chunk.view({-1, reference.head.columns}).split(at_once.tokens);
      for (size_t block = 0; block < blocks.size(); ++block) {
        for (int64_t row = 0; row < end - begin; row += at_once.columns) {
          const int64_t count = std::min(at_once.columns, end - begin - row);
          sums.add(blocks[block], reference_blocks[block], rows.narrow(0, row, count),
                   reference_rows.narrow(0, row, count), first, begin + row);
        }
        first += blocks[block].size(0);
        progress.advance(blocks[block].size(0));
      }
    });
  }
  NextTokenComparison comparison;
  comparison.losses = finite_losses(sums.pairs.log_sums(), sums.picked, model, windows);
  comparison.reference_losses =
      finite_losses(sums.pairs.reference_log_sums(), sums.reference_picked, reference, windows);
  comparison.divergences = of_next_tokens(sums.pairs.divergences(), windows);
  comparison.same_top = of_next_tokens(sums.pairs.same_top(), windows);
  return comparison;
}

}  // namespace dynslice
