// How the output matrix is walked through: in which blocks logits are made, and what they are compared with.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "dynslice/support/token_windows.h"
#include "dynslice/tensor/blocks.h"

namespace dynslice {

// Logits are made for some tokens and some of these rows at a time: on the CPU few enough to be still in the cache when
// they are summed up, on a device so many that launching its kernels does not count.
struct LogitBlock {
  int64_t tokens, columns;
};

[[nodiscard]] inline LogitBlock logit_block(at::Device device) {
  return device.is_cpu() ? LogitBlock{1024, 2048} : LogitBlock{4096, kVocabularyBlock};
}

// What every position must predict: the next id of its window; 0 at the last one, whose loss is not used. [tokens].
[[nodiscard]] at::Tensor next_ids(const TokenWindows& windows, at::Device device);

// Puts the logits [n, columns] of the targets [n] that lie in [begin, begin + columns) into `picked` [n].
void pick_targets(at::Tensor picked, const at::Tensor& logits, const at::Tensor& targets, int64_t begin);

}  // namespace dynslice
