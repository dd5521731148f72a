// What follows the last layer: final norm and output matrix, and the loss computed from them without ever
// holding the logits of more than one chunk of tokens for one block of the vocabulary.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <optional>
#include <string>

#include "dynslice/walk/layer_walk.h"

namespace dynslice {

// The final norm and where the output matrix comes from.
struct Head {
  int64_t vocab_size = 0;
  int64_t width = 0;         // of the stream that enters the norm
  int64_t columns = 0;       // of the output matrix: `width`, or the original hidden size behind a rotation
  at::Tensor norm;           // [width] fp32; undefined when folded into what follows
  bool is_centred = false;   // the norm is a layer norm, with `bias`
  at::Tensor rotation;       // [columns, width] fp32, between norm and output matrix; undefined when there is none
  at::Tensor bias;           // [columns] fp32, of a layer norm, or behind a rotation in its place; undefined: none
  int64_t norm_divisor = 0;  // the original hidden size
  double rms_norm_eps = 0;
  double logit_scale = 1;  // what logits are multiplied by, and by what they are capped behind that; 0: by nothing
  double logit_cap = 0;
  bool is_in_memory = false;  // the output matrix: load_rows gives views of it
  // Rows [begin, end) of the output matrix [vocab_size, columns], on the walk's device.
  std::function<at::Tensor(int64_t begin, int64_t end)> load_rows;
};

// The head of a checkpoint, tied or not. Rows of the output matrix come in `dtype`, the walk's when not given.
[[nodiscard]] Head load_head(const LayerWalk& walk, std::optional<at::ScalarType> dtype = std::nullopt);

// The stream after the final norm: x [..., width] → [..., width], fp32.
[[nodiscard]] at::Tensor final_norm(const Head& head, const at::Tensor& x);

// What the output matrix reads: the stream after the final norm, the rotation and the scale of the logits,
// x [..., width] → [..., columns] fp32.
[[nodiscard]] at::Tensor head_input(const Head& head, const at::Tensor& x);

// Logits of some rows of the output matrix, of what head_input gave: [n, columns] and [rows, columns] → [n, rows], in
// the dtype of the product.
[[nodiscard]] at::Tensor logits_of(const Head& head, const at::Tensor& input, const at::Tensor& rows);

// Negative log-likelihood in nats of every next token: [windows, T - 1] fp64, on the CPU. Entry (w, t) is
// -log p(token t+1 | tokens 0..t) of window w. `stream`, the one that leaves the last layer, is used up.
[[nodiscard]] at::Tensor next_token_losses(const LayerWalk& walk, const Head& head, ResidualStream stream,
                                           const TokenWindows& windows, const std::string& task);

// What two models with one vocabulary say of every next token, [windows, T - 1] each, on the CPU.
struct NextTokenComparison {
  at::Tensor losses;            // of the model, as next_token_losses gives them, fp64
  at::Tensor reference_losses;  // of the reference
  at::Tensor divergences;       // KL(reference || model) of the next token's distributions, in nats, fp64
  at::Tensor same_top;          // bool: the likeliest token is the same
};

// The side of one of the models; `stream`, the one that leaves its last layer, is used up.
struct ComparedHead {
  const LayerWalk& walk;
  const Head& head;  // with rows in fp32
  ResidualStream stream;
};

// Compares the distributions over the vocabulary without ever holding a whole one: sums over blocks of the vocabulary,
// in fp64, are enough for the divergence. Logits are fp32 whatever the walk's dtype: rounding them to bf16 alone would
// make a divergence as large as that of good quantizers. Both streams are of the same windows in the same chunks.
// Throws kBadInput when a model's logits are not finite.
[[nodiscard]] NextTokenComparison compare_next_tokens(ComparedHead model, ComparedHead reference,
                                                      const TokenWindows& windows, const std::string& task);

// Logits of one chunk of tokens: x [n, width] → [n, vocab_size] fp32. For short texts and tests.
[[nodiscard]] at::Tensor logits(const Head& head, const at::Tensor& x);

// Throws kBadInput, naming the model, when what its logits gave is NaN or infinite anywhere.
void check_likelihoods(const at::Tensor& values, const Checkpoint& checkpoint);

}  // namespace dynslice
