// A tokenizer as tokenizer.json describes it: normalizer, pre-tokenizer, BPE model, template, decoder.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "dynslice/support/json.h"
#include "dynslice/text/tokenizer/tokenizer.h"

namespace dynslice {

// The special tokens that a model's other files name.
struct SpecialTokenNames {
  std::optional<std::string> bos;
  std::optional<std::string> eos;
};

// `json` is the content of a tokenizer.json, `where` its name in messages. "truncation" and "padding" have no
// effect. Throws kBadInput naming the key, what it must be and what was found.
std::unique_ptr<Tokenizer> make_json_tokenizer(const Json& json, const std::string& where,
                                               const SpecialTokenNames& names);

}  // namespace dynslice
