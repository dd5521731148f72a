// A tokenizer whose vocabulary is a sentencepiece model, with special tokens as Hugging Face's Llama treats them.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "dynslice/text/tokenizer/tokenizer.h"
#include "text/tokenizer/tokenizer_added_tokens.h"

namespace dynslice {

struct SentencePieceOptions {
  bool add_bos = true;
  bool add_eos = false;
  // A space is put before the text and again after every special token (transformers' `legacy` Llama tokenizer,
  // llama.cpp); otherwise before the text alone.
  bool prefix_every_part = true;
  std::optional<std::string> bos;  // the model's own without
  std::optional<std::string> eos;
  std::vector<AddedToken> added;  // beside the model's own control, unknown and user-defined pieces
};

// Throws kBadInput beginning with `where` when the model cannot be used.
std::unique_ptr<Tokenizer> make_sentencepiece_tokenizer(const std::string& serialized, const std::string& where,
                                                        const SentencePieceOptions& options);

}  // namespace dynslice
