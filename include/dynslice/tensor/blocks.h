// How much of a large matrix, or of a long text, is worked on at once.
#pragma once

#include <cstdint>

namespace dynslice {

// Rows of the embedding or of the output matrix: one for every token of the vocabulary.
inline constexpr int64_t kVocabularyBlock = 8192;

// Rows of activations whose products are summed in fp32 before they go to a sum in fp64: each of its entries then has
// the relative rounding of a sum of this many terms, about that of the fp32 stream itself.
inline constexpr int64_t kSummedRows = 512;

}  // namespace dynslice
