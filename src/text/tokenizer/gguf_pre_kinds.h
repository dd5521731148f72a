// The values of tokenizer.ggml.pre: how byte-level BPE cuts text into words, by the name that llama.cpp has for it.
#pragma once

#include <string>
#include <vector>

#include "dynslice/support/json.h"

namespace dynslice {

struct PreKind {
  std::vector<const char*> names;     // the first is written, all are read
  std::vector<const char*> patterns;  // applied one after the other; none: GPT-2's
  bool individual_digits = false;
  bool nfc = false;
  bool ignore_merges = false;
  bool add_bos = false;  // where add_bos_token is not given
};

const std::vector<PreKind>& pre_kinds();

// "pre_tokenizer" of a tokenizer.json that cuts as `kind` does.
Json byte_level_pre_tokenizer(const PreKind& kind);

// The kind that cuts as this tokenizer.json does. Throws kBadInput beginning with `where` when there is none.
const PreKind& recognise_pre_kind(const Json& tokenizer, const std::string& where);

}  // namespace dynslice
