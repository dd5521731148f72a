#include "text/tokenizer/sentencepiece_tokenizer.h"

#include <sentencepiece_processor.h>

#include <algorithm>
#include <utility>

#include "dynslice/support/error.h"
#include "dynslice/text/tokenizer/tokenizer_unicode.h"
#include "text/tokenizer/metaspace.h"
#include "text/tokenizer/sentencepiece_proto.h"

namespace dynslice {
namespace {

using sentencepiece::SentencePieceProcessor;

void check(const sentencepiece::util::Status& status, const std::string& where) {
  if (status.ok()) return;
  std::string reason = status.ToString();
  std::replace(reason.begin(), reason.end(), '\n', ' ');
  throw_error(ErrorKind::kBadInput, where, ": is not a sentencepiece model that can be used (", reason, ")");
}

// sentencepiece takes four times as long for a megabyte in one go as for the same in parts.
constexpr size_t kHeadBytes = 1024;

// Where the first part of `text` ends: before the first space beyond kHeadBytes that follows another character.
size_t end_of_head(std::string_view text) {
  for (size_t at = text.find(' ', kHeadBytes); at != std::string_view::npos; at = text.find(' ', at + 1)) {
    if (text[at - 1] != ' ' && !text.substr(0, at).ends_with(kMetaspace)) return at;
  }
  return text.size();
}

// Guarantees: immutable after construction, so encode and decode may run in several threads at once.
class SentencePieceTokenizer : public Tokenizer {
 public:
  SentencePieceTokenizer(const std::string& serialized, const std::string& where, const SentencePieceOptions& options);

  std::vector<int32_t> encode(std::string_view text, bool add_special) const override;
  std::string decode(std::span<const int32_t> ids, bool skip_special) const override;
  int64_t vocab_size() const override { return vocab_size_; }
  std::optional<int32_t> bos_id() const override { return bos_; }
  std::optional<int32_t> eos_id() const override { return eos_; }
  bool adds_bos() const override { return add_bos_ && bos_; }

 private:
  std::vector<AddedToken> special_pieces() const;
  std::optional<int32_t> special_id(const std::optional<std::string>& token, int fallback) const;
  void encode_part(std::string_view text, bool first, std::vector<int32_t>& ids) const;
  std::string decode_pieces(const std::vector<int>& ids) const;

  std::string where_;
  SentencePieceProcessor processor_;
  std::unique_ptr<SentencePieceProcessor> bare_;  // puts no space before the text; where it is needed
  bool cuts_at_spaces_ = false;
  bool prefix_every_part_;
  std::unique_ptr<AddedTokens> added_;
  bool add_bos_;
  bool add_eos_;
  int64_t vocab_size_ = 0;
  std::optional<int32_t> bos_;
  std::optional<int32_t> eos_;
};

SentencePieceTokenizer::SentencePieceTokenizer(const std::string& serialized, const std::string& where,
                                               const SentencePieceOptions& options)
    : where_(where),
      prefix_every_part_(options.prefix_every_part),
      add_bos_(options.add_bos),
      add_eos_(options.add_eos) {
  cuts_at_spaces_ = inspect_sentencepiece_model(serialized, where).cuts_at_spaces;
  check(processor_.LoadFromSerializedProto(serialized), where);
  if (cuts_at_spaces_ || !prefix_every_part_) {
    bare_ = std::make_unique<SentencePieceProcessor>();
    check(bare_->LoadFromSerializedProto(without_dummy_prefix(serialized)), where);
  }
  std::vector<AddedToken> tokens = special_pieces();
  tokens.insert(tokens.end(), options.added.begin(), options.added.end());
  vocab_size_ = processor_.GetPieceSize();
  for (const AddedToken& token : tokens) vocab_size_ = std::max<int64_t>(vocab_size_, int64_t{token.id} + 1);
  added_ = std::make_unique<AddedTokens>(std::move(tokens), nullptr);
  bos_ = special_id(options.bos, processor_.bos_id());
  eos_ = special_id(options.eos, processor_.eos_id());
}

std::vector<AddedToken> SentencePieceTokenizer::special_pieces() const {
  std::vector<AddedToken> tokens;
  for (int id = 0; id < processor_.GetPieceSize(); ++id) {
    if (!processor_.IsControl(id) && !processor_.IsUnknown(id)) continue;
    AddedToken token;
    token.content = processor_.IdToPiece(id);
    token.id = id;
    token.special = true;
    tokens.push_back(std::move(token));
  }
  return tokens;
}

std::optional<int32_t> SentencePieceTokenizer::special_id(const std::optional<std::string>& token, int fallback) const {
  if (token) {
    if (const auto id = added_->id_of(*token)) return id;
    const int id = processor_.PieceToId(*token);
    if (!processor_.IsUnknown(id)) return id;
  }
  return fallback < 0 ? std::nullopt : std::optional<int32_t>(fallback);
}

std::vector<int32_t> SentencePieceTokenizer::encode(std::string_view text, bool add_special) const {
  check_text_length(text);
  std::string clean;
  if (!is_valid_utf8(text)) text = clean = replace_invalid_utf8(text);
  std::vector<int32_t> ids;
  if (add_special && adds_bos()) ids.push_back(*bos_);
  for (const TextPart& part : added_->split_raw(text)) {
    if (part.id) {
      ids.push_back(*part.id);
    } else {
      encode_part(part.text, part.text.data() == text.data(), ids);
    }
  }
  if (add_special && add_eos_ && eos_) ids.push_back(*eos_);
  return ids;
}

void SentencePieceTokenizer::encode_part(std::string_view text, bool first, std::vector<int32_t>& ids) const {
  bool prefix = first || prefix_every_part_;
  std::vector<int> part;
  while (!text.empty()) {
    const std::string_view head = cuts_at_spaces_ ? text.substr(0, end_of_head(text)) : text;
    const SentencePieceProcessor& processor = prefix ? processor_ : *bare_;
    check(processor.Encode(absl::string_view(head.data(), head.size()), &part), where_);
    ids.insert(ids.end(), part.begin(), part.end());
    text.remove_prefix(head.size());
    prefix = false;
  }
}

std::string SentencePieceTokenizer::decode_pieces(const std::vector<int>& ids) const {
  std::string text;
  if (!ids.empty()) check(processor_.Decode(ids, &text), where_);
  return text;
}

std::string SentencePieceTokenizer::decode(std::span<const int32_t> ids, bool skip_special) const {
  std::string text;
  std::vector<int> run;
  for (const int32_t id : ids) {
    if (const std::string* token = added_->decoded_form(id)) {
      if (skip_special && added_->is_special(*token)) continue;
      text += decode_pieces(std::exchange(run, {}));
      text += *token;
    } else if (id >= 0 && id < processor_.GetPieceSize()) {
      run.push_back(id);
    }
  }
  return text + decode_pieces(run);
}

}  // namespace

std::unique_ptr<Tokenizer> make_sentencepiece_tokenizer(const std::string& serialized, const std::string& where,
                                                        const SentencePieceOptions& options) {
  return std::make_unique<SentencePieceTokenizer>(serialized, where, options);
}

}  // namespace dynslice
