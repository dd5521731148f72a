// The tokenizer in a GGUF file's metadata (tokenizer.ggml.*), as the files that Hugging Face would have.
#pragma once

#include <memory>
#include <string>

#include "dynslice/formats/gguf/gguf_file.h"
#include "dynslice/support/json.h"
#include "dynslice/text/tokenizer/tokenizer.h"

namespace dynslice {

// Throws kMissingData when the file has no tokenizer; kBadInput (file, key, found, known) for one that cannot
// be used. tokenizer.ggml.model is "gpt2" (byte-level BPE), "llama" (sentencepiece) or
// "gemma4" (BPE whose spaces are ▁).
std::unique_ptr<Tokenizer> make_gguf_tokenizer(const GgufFile& file);

struct GgufTokenizerFiles {
  Json tokenizer;             // tokenizer.json
  Json config;                // tokenizer_config.json
  std::string sentencepiece;  // tokenizer.model; empty for "gpt2"
};

GgufTokenizerFiles tokenizer_files_of_gguf(const GgufFile& file);

// tokenizer_config.json alone.
Json tokenizer_config_of_gguf(const GgufFile& file);

}  // namespace dynslice
