#include "dynslice/walk/head.h"

#include <algorithm>
#include <vector>

#include "aten.h"
#include "dynslice/support/error.h"
#include "dynslice/tensor/kernels.h"
#include "dynslice/tensor/logit_blocks.h"

namespace dynslice {
namespace {

// Running log-sum-exp and target logit of every position of all windows, fp64 [positions].
struct LossState {
  at::Tensor log_sum;
  at::Tensor target_logit;
};

// Adds the logits of vocabulary rows [begin, begin + rows) for positions [first, first + x.size(0)).
void accumulate(LossState& state, const Head& head, const at::Tensor& x, const at::Tensor& rows,
                const at::Tensor& targets, int64_t begin, int64_t first) {
  const at::Tensor logits = logits_of(head, x, rows);
  at::Tensor log_sum = state.log_sum.narrow(0, first, x.size(0));
  log_sum.copy_(at::logaddexp(log_sum, kernels::logsumexp_rows(logits)));
  pick_targets(state.target_logit.narrow(0, first, x.size(0)), logits, targets.narrow(0, first, x.size(0)), begin);
}

}  // namespace

void check_likelihoods(const at::Tensor& values, const Checkpoint& checkpoint) {
  if (at::isfinite(values).all().item<bool>()) return;
  throw_error(ErrorKind::kBadInput, checkpoint.path().string(),
              ": the model's logits are NaN or infinite; its weights are damaged, or too large for the dtype");
}

Head load_head(const LayerWalk& walk, std::optional<at::ScalarType> dtype) {
  const ModelConfig& config = walk.config();
  const Checkpoint& checkpoint = walk.checkpoint();
  Head head;
  head.vocab_size = config.vocab_size;
  head.width = config.head_width;
  head.columns = config.head_columns();
  head.norm_divisor = config.hidden_size;
  head.rms_norm_eps = config.rms_norm_eps;
  head.logit_scale = config.logit_scale;
  head.logit_cap = config.logit_cap;
  if (config.has_final_norm_weight) {
    head.norm = checkpoint.load("model.norm.weight", {head.width}, at::kFloat).to(walk.options().device);
  }
  if (config.has_centred_norms) {
    head.is_centred = !config.has_head_rotation;
    const char* bias = config.has_head_rotation ? "model.head_rotation.bias" : "model.norm.bias";
    head.bias = checkpoint.load(bias, {head.columns}, at::kFloat).to(walk.options().device);
  }
  if (config.has_head_rotation) {
    head.rotation =
        checkpoint.load("model.head_rotation.weight", {head.columns, head.width}, at::kFloat).to(walk.options().device);
  }
  const std::string name = config.tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight";
  head.load_rows = [&checkpoint, name, device = walk.options().device, dtype = dtype.value_or(walk.options().dtype),
                    shape = std::vector<int64_t>{head.vocab_size, head.columns}](int64_t begin, int64_t end) {
    return checkpoint.load_rows(name, shape, begin, end, dtype).to(device);
  };
  return head;
}

at::Tensor final_norm(const Head& head, const at::Tensor& x) {
  if (head.is_centred) return kernels::layer_norm(x, head.norm, head.bias, head.rms_norm_eps, at::kFloat);
  return kernels::rms_norm(x, head.norm, head.norm_divisor, head.rms_norm_eps, at::kFloat);
}

at::Tensor head_input(const Head& head, const at::Tensor& x) {
  const at::Tensor normed = final_norm(head, x);
  at::Tensor input = head.rotation.defined() ? kernels::linear(normed, head.rotation, head.bias) : normed;
  return head.logit_scale == 1 ? input : input.mul_(head.logit_scale);
}

at::Tensor logits_of(const Head& head, const at::Tensor& input, const at::Tensor& rows) {
  at::Tensor logits = kernels::linear(input, rows, {});
  kernels::soft_cap_(logits, head.logit_cap);
  return logits;
}

at::Tensor next_token_losses(const LayerWalk& walk, const Head& head, ResidualStream stream,
                             const TokenWindows& windows, const std::string& task) {
  const int64_t positions = windows.tokens();
  const auto options = at::TensorOptions().dtype(at::kDouble).device(walk.options().device);
  LossState state{at::full({positions}, -INFINITY, options), at::zeros({positions}, options)};
  const at::Tensor targets = next_ids(windows, walk.options().device);
  stream.transform([&](const at::Tensor& x) { return head_input(head, x).to(walk.options().dtype); });

  const LogitBlock at_once = logit_block(walk.options().device);
  const int64_t vocabulary_blocks = (head.vocab_size + kVocabularyBlock - 1) / kVocabularyBlock;
  ProgressTask progress(walk.progress(), task, positions * vocabulary_blocks, "tokens");
  for (int64_t begin = 0; begin < head.vocab_size; begin += kVocabularyBlock) {
    const at::Tensor rows = head.load_rows(begin, std::min(head.vocab_size, begin + kVocabularyBlock));
    int64_t first = 0;
    stream.visit([&](const at::Tensor& chunk) {
      for (const at::Tensor& block : chunk.view({-1, head.columns}).split(at_once.tokens)) {
        for (int64_t row = 0; row < rows.size(0); row += at_once.columns) {
          const int64_t count = std::min(at_once.columns, rows.size(0) - row);
          accumulate(state, head, block, rows.narrow(0, row, count), targets, begin + row, first);
        }
        first += block.size(0);
        progress.advance(block.size(0));
      }
    });
  }
  const at::Tensor losses =
      (state.log_sum - state.target_logit).cpu().view({windows.count, windows.length}).narrow(1, 0, windows.length - 1);
  check_likelihoods(losses, walk.checkpoint());
  return losses.contiguous();
}

at::Tensor logits(const Head& head, const at::Tensor& x) {
  const at::Tensor input = head_input(head, x);
  std::vector<at::Tensor> parts;
  for (int64_t begin = 0; begin < head.vocab_size; begin += kVocabularyBlock) {
    const at::Tensor rows = head.load_rows(begin, std::min(head.vocab_size, begin + kVocabularyBlock));
    parts.push_back(logits_of(head, input, rows).to(at::kFloat));
  }
  return at::cat(parts, -1);
}

}  // namespace dynslice
