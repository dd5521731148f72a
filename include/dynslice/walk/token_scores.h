// Log-probabilities of chosen tokens at chosen rows of a stream: logits are made for these rows only, and never for
// more than a block of the vocabulary at a time.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "dynslice/walk/head.h"

namespace dynslice {

// A token that might follow a row (counted over all chunks of the stream).
struct TokenTarget {
  int64_t row = 0;
  int32_t id = 0;
};

// log p(id | row) of every target in nats, fp64, and whether no other token is likelier there: [targets, 2] on the CPU.
// `stream`, the one that leaves the last layer in chunks [..., width], is used up. Throws kBadInput when logits are NaN
// or infinite, or an id is outside the vocabulary.
[[nodiscard]] at::Tensor score_tokens(const LayerWalk& walk, const Head& head, ResidualStream stream,
                                      const std::vector<TokenTarget>& targets, const std::string& task);

}  // namespace dynslice
