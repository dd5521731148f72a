// Reads the parts of a tokenizer.json. Each function takes the value of the key it is named after and the name
// that value has in messages, and throws kBadInput for kinds and values that are not supported.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "dynslice/support/json.h"
#include "text/tokenizer/bpe_model.h"
#include "text/tokenizer/pretokenizer.h"
#include "text/tokenizer/tokenizer_added_tokens.h"
#include "text/tokenizer/tokenizer_decoder.h"
#include "text/tokenizer/tokenizer_normalizer.h"

namespace dynslice {

// One item of a template: the text's own ids, or special tokens.
struct TemplateItem {
  bool is_text = false;
  std::vector<int32_t> ids;
};

std::unique_ptr<Normalizer> read_normalizer(const Json& json, const std::string& where);       // may be nullptr
std::unique_ptr<PreTokenizer> read_pre_tokenizer(const Json& json, const std::string& where);  // may be nullptr
std::unique_ptr<Decoder> read_decoder(const Json& json, const std::string& where);             // may be nullptr
std::unique_ptr<BpeModel> read_bpe_model(const Json& json, const std::string& where);
std::vector<std::vector<TemplateItem>> read_post_processor(const Json& json, const std::string& where);
// Ids are those of the vocabulary; tokens it lacks follow it in the order given, as Hugging Face numbers them.
std::vector<AddedToken> read_added_tokens(const Json& json, const std::string& where, const BpeModel& model);

}  // namespace dynslice
