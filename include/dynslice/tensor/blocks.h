// How much of a large matrix is in memory at once.
#pragma once

#include <cstdint>

namespace dynslice {

// Rows of the embedding or of the output matrix: one for every token of the vocabulary.
inline constexpr int64_t kVocabularyBlock = 8192;

}  // namespace dynslice
