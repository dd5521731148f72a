// A checkpoint's tokenizer in the words of GGUF.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>

#include "dynslice/formats/gguf/gguf_writer.h"

namespace dynslice {

// What the model's configuration says of its tokens.
struct ModelTokens {
  int64_t vocab_size = 0;  // rows of the embedding: the vocabulary is filled up to it
  std::optional<int64_t> bos_id;
  std::optional<int64_t> eos_id;
};

// The keys tokenizer.* that make llama.cpp, and load_tokenizer, cut texts as the tokenizer of `checkpoint` does: those
// of a GGUF file as they are; from a folder, byte-level BPE with the right tokenizer.ggml.pre, or sentencepiece, and
// the chat template. Throws kMissingData when there is no tokenizer; kBadInput (file, key, found, expected) for one
// that has no place in GGUF.
[[nodiscard]] GgufMetadata gguf_tokenizer_metadata(const std::filesystem::path& checkpoint, const ModelTokens& model);

}  // namespace dynslice
