// Perplexity of bytes and of words: figures that models with different tokenizers can be compared by.
#pragma once

#include <cstdint>

#include "dynslice/evaluate/perplexity.h"
#include "dynslice/text/tokenizer/tokenizer.h"

namespace dynslice {

// The text that the scored tokens stand for. The text of a window is what its tokens decode to, special tokens left
// out; what its unscored first tokens decode to is taken off its length.
struct ScoredText {
  int64_t bytes = 0;  // of UTF-8
  // Runs of characters that are no white space (as Python's str.split() has it) that begin in the scored text: one that
  // begins in the unscored tokens, or in the window before, is not counted.
  int64_t words = 0;
};

[[nodiscard]] ScoredText count_scored_text(const Tokenizer& tokenizer, const TokenWindows& windows,
                                           PerplexityProtocol protocol);

// As lm-evaluation-harness defines them: the loss of all scored tokens over the number of words or bytes, to the power
// of e; in bits for bits_per_byte. Zero where there are no words or bytes.
struct TextLevels {
  double word_perplexity = 0;
  double byte_perplexity = 0;
  double bits_per_byte = 0;
};

[[nodiscard]] TextLevels text_levels(const Perplexity& perplexity, const ScoredText& text);

}  // namespace dynslice
