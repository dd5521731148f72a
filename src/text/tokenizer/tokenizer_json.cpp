#include "text/tokenizer/tokenizer_json.h"

#include <algorithm>

#include "dynslice/text/tokenizer/tokenizer_unicode.h"
#include "text/tokenizer/tokenizer_json_parts.h"

namespace dynslice {
namespace {

// Guarantees: immutable after construction, so encode and decode may run in several threads at once.
class JsonTokenizer : public Tokenizer {
 public:
  JsonTokenizer(const Json& json, const std::string& where, const SpecialTokenNames& names);

  std::vector<int32_t> encode(std::string_view text, bool add_special) const override;
  std::string decode(std::span<const int32_t> ids, bool skip_special) const override;
  int64_t vocab_size() const override { return vocab_size_; }
  std::optional<int32_t> bos_id() const override { return bos_; }
  std::optional<int32_t> eos_id() const override { return eos_; }
  bool adds_bos() const override { return adds_bos_; }

 private:
  std::optional<int32_t> id_of(const std::optional<std::string>& token) const;
  void find_special_ids(const SpecialTokenNames& names);
  void encode_segment(std::string_view text, bool at_text_start, BpeModel::Cache& cache,
                      std::vector<int32_t>& ids) const;
  void encode_words(std::string_view text, bool at_text_start, BpeModel::Cache& cache, std::vector<int32_t>& ids) const;
  std::vector<int32_t> apply_templates(std::vector<int32_t> ids, bool add_special) const;

  std::unique_ptr<Normalizer> normalizer_;
  std::unique_ptr<PreTokenizer> pre_tokenizer_;
  std::unique_ptr<BpeModel> model_;
  std::unique_ptr<Decoder> decoder_;
  std::vector<std::vector<TemplateItem>> templates_;
  std::unique_ptr<AddedTokens> added_;
  int64_t vocab_size_ = 0;
  std::optional<int32_t> bos_;
  std::optional<int32_t> eos_;
  bool adds_bos_ = false;
};

const Json& member_or_null(const Json& object, const std::string& key) {
  static const Json null;
  const auto found = object.find(key);
  return found == object.end() ? null : *found;
}

JsonTokenizer::JsonTokenizer(const Json& json, const std::string& where, const SpecialTokenNames& names) {
  const JsonReader reader(json, where);
  const auto part = [&](const std::string& key) -> const Json& { return member_or_null(json, key); };
  const auto name = [&](const std::string& key) { return where + ": " + key; };
  normalizer_ = read_normalizer(part("normalizer"), name("normalizer"));
  pre_tokenizer_ = read_pre_tokenizer(part("pre_tokenizer"), name("pre_tokenizer"));
  if (!reader.has("model")) reader.fail("model", "an object");
  model_ = read_bpe_model(part("model"), name("model"));
  decoder_ = read_decoder(part("decoder"), name("decoder"));
  templates_ = read_post_processor(part("post_processor"), name("post_processor"));
  std::function<std::string(std::string)> normalize;
  if (normalizer_) normalize = [this](std::string text) { return normalizer_->apply(std::move(text)); };
  added_ =
      std::make_unique<AddedTokens>(read_added_tokens(part("added_tokens"), name("added_tokens"), *model_), normalize);
  find_special_ids(names);
}

std::optional<int32_t> JsonTokenizer::id_of(const std::optional<std::string>& token) const {
  if (!token) return std::nullopt;
  const auto added = added_->id_of(*token);
  return added ? added : model_->id_of(*token);
}

void JsonTokenizer::find_special_ids(const SpecialTokenNames& names) {
  bos_ = id_of(names.bos);
  eos_ = id_of(names.eos);
  vocab_size_ = model_->id_limit();
  for (const AddedToken& token : added_->tokens()) vocab_size_ = std::max<int64_t>(vocab_size_, int64_t{token.id} + 1);
  for (const auto& items : templates_) {
    for (const TemplateItem& item : items) {
      for (const int32_t id : item.ids) vocab_size_ = std::max<int64_t>(vocab_size_, int64_t{id} + 1);
    }
  }
  const std::vector<int32_t> frame = apply_templates({}, true);
  const bool begins_with_special =
      !templates_.empty() && !templates_.back().empty() && !templates_.back().front().is_text;
  // Without a tokenizer_config.json the token that the template begins with is the one that begins texts.
  if (!bos_ && begins_with_special && !frame.empty()) bos_ = frame.front();
  adds_bos_ = begins_with_special && !frame.empty() && bos_ == frame.front();
}

std::vector<int32_t> JsonTokenizer::encode(std::string_view text, bool add_special) const {
  check_text_length(text);
  std::string clean;
  if (!is_valid_utf8(text)) text = clean = replace_invalid_utf8(text);
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 3);
  BpeModel::Cache cache;
  for (const TextPart& part : added_->split_raw(text)) {
    if (part.id) {
      ids.push_back(*part.id);
    } else {
      encode_segment(part.text, part.text.data() == text.data(), cache, ids);
    }
  }
  return apply_templates(std::move(ids), add_special);
}

void JsonTokenizer::encode_segment(std::string_view text, bool at_text_start, BpeModel::Cache& cache,
                                   std::vector<int32_t>& ids) const {
  std::string normalized;
  if (normalizer_) text = normalized = normalizer_->apply(std::string(text));
  for (const TextPart& part : added_->split_normalized(text)) {
    if (part.id) {
      ids.push_back(*part.id);
    } else {
      encode_words(part.text, at_text_start && part.text.data() == text.data(), cache, ids);
    }
  }
}

void JsonTokenizer::encode_words(std::string_view text, bool at_text_start, BpeModel::Cache& cache,
                                 std::vector<int32_t>& ids) const {
  Words words;
  words.at_text_start = at_text_start;
  words.add(text);
  if (pre_tokenizer_) pre_tokenizer_->apply(words);
  words.for_each([&](std::string_view word) { model_->encode(word, cache, ids); });
}

std::vector<int32_t> JsonTokenizer::apply_templates(std::vector<int32_t> ids, bool add_special) const {
  for (const auto& items : templates_) {
    std::vector<int32_t> out;
    for (const TemplateItem& item : items) {
      if (!item.is_text && !add_special) continue;
      const std::vector<int32_t>& source = item.is_text ? ids : item.ids;
      out.insert(out.end(), source.begin(), source.end());
    }
    ids = std::move(out);
  }
  return ids;
}

std::string JsonTokenizer::decode(std::span<const int32_t> ids, bool skip_special) const {
  std::vector<std::string> tokens;
  tokens.reserve(ids.size());
  for (const int32_t id : ids) {
    const std::string* token = added_->decoded_form(id);
    if (token == nullptr) token = model_->token_of(id);
    if (token == nullptr || (skip_special && added_->is_special(*token))) continue;
    tokens.push_back(*token);
  }
  const bool spaced = decoder_ == nullptr;  // as Hugging Face does without a decoder
  if (decoder_) tokens = decoder_->apply(std::move(tokens));
  std::string text;
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (spaced && i > 0) text += ' ';
    text += tokens[i];
  }
  return text;
}

}  // namespace

std::unique_ptr<Tokenizer> make_json_tokenizer(const Json& json, const std::string& where,
                                               const SpecialTokenNames& names) {
  return std::make_unique<JsonTokenizer>(json, where, names);
}

}  // namespace dynslice
