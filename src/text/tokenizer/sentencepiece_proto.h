// Writes sentencepiece models: the protobuf message ModelProto, for vocabularies that come from elsewhere.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace dynslice {

// sentencepiece's numbers; GGUF's token_type has the same.
enum class PieceType : int { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };

struct SentencePiece {
  std::string text;
  float score = 0;
  PieceType type = PieceType::kNormal;
};

// A BPE vocabulary in which spaces are "▁" and no other normalization takes place.
struct SentencePieceVocabulary {
  std::vector<SentencePiece> pieces;
  bool byte_fallback = false;
  bool add_dummy_prefix = true;  // a space before the text
  std::optional<int32_t> unk;
  std::optional<int32_t> bos;
  std::optional<int32_t> eos;
};

std::string serialize_sentencepiece_model(const SentencePieceVocabulary& vocabulary);

// The vocabulary of a model file. Throws kBadInput beginning with `where` for one that is damaged, has no pieces, or is
// not BPE (GGUF's "llama" tokenizer merges by score; unigram models need another).
SentencePieceVocabulary read_sentencepiece_vocabulary(std::string_view serialized, const std::string& where);

// `serialized` with add_dummy_prefix off: a later field of a message replaces an earlier one.
std::string without_dummy_prefix(std::string serialized);

struct SentencePieceTraits {
  // A text may be cut before any space that follows another character, and its parts encoded one by one (all
  // but the first without dummy prefix): no piece reaches over such a place, and spaces are kept as they are.
  bool cuts_at_spaces = false;
};

// Throws kBadInput beginning with `where` unless `serialized` is a ModelProto whose precompiled character map
// can be walked without leaving it: sentencepiece itself does not check that.
SentencePieceTraits inspect_sentencepiece_model(std::string_view serialized, const std::string& where);

}  // namespace dynslice
