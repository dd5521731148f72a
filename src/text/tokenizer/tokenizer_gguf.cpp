#include "text/tokenizer/tokenizer_gguf.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "dynslice/support/error.h"
#include "dynslice/text/tokenizer/tokenizer_unicode.h"
#include "text/tokenizer/bpe_model.h"
#include "text/tokenizer/gguf_pre_kinds.h"
#include "text/tokenizer/metaspace.h"
#include "text/tokenizer/sentencepiece_proto.h"
#include "text/tokenizer/sentencepiece_tokenizer.h"
#include "text/tokenizer/tokenizer_decoder.h"
#include "text/tokenizer/tokenizer_json.h"

namespace dynslice {
namespace {

std::string key_of(const std::string& name) { return "tokenizer.ggml." + name; }

[[noreturn]] void fail(const GgufFile& file, const std::string& name, const std::string& message) {
  throw_error(ErrorKind::kBadInput, file.path().string(), ": ", key_of(name), ": ", message);
}

const PreKind& pre_kind(const GgufFile& file) {
  const std::string pre = file.has(key_of("pre")) ? file.string(key_of("pre")) : "default";
  std::string known;
  for (const PreKind& kind : pre_kinds()) {
    for (const char* name : kind.names) {
      if (pre == name) return kind;
      known += (known.empty() ? "" : ", ") + std::string(name);
    }
  }
  fail(file, "pre", "\"" + pre + "\" is not known; known are " + known);
}

// Merges by rank, spaces as ▁, and tokens of bytes for what is unknown.
constexpr const char* kRankedMetaspace = "gemma4";

std::string tokenizer_model(const GgufFile& file) {
  if (!file.has(key_of("model"))) {
    throw_error(ErrorKind::kMissingData, file.path().string(), ": has no tokenizer (key ", key_of("model"),
                "); use a GGUF file with one, or the Hugging Face folder");
  }
  std::string model = file.string(key_of("model"));
  if (model != "gpt2" && model != "llama" && model != kRankedMetaspace)
    fail(file, "model", "\"" + model + "\" is not supported; supported are gpt2, llama and " + kRankedMetaspace);
  return model;
}

bool flag(const GgufFile& file, const std::string& name, bool fallback) {
  return file.has(key_of(name)) ? file.boolean(key_of(name)) : fallback;
}

// The vocabulary with every id checked, however it is used afterwards.
class Vocabulary {
 public:
  explicit Vocabulary(const GgufFile& file) : file_(file), tokens_(file.strings(key_of("tokens"))) {
    if (tokens_.empty() || static_cast<int64_t>(tokens_.size()) > kMaxTokenId) {
      fail(file, "tokens",
           "has " + std::to_string(tokens_.size()) + " tokens; between 1 and " + std::to_string(kMaxTokenId) +
               " are expected");
    }
    for (size_t id = 0; id < tokens_.size(); ++id) check_token(id);
    read_types();
  }

  size_t size() const { return tokens_.size(); }
  const std::string& text(size_t id) const { return tokens_[id]; }
  PieceType type(size_t id) const { return types_[id]; }
  std::optional<int32_t> find(const std::string& text) const {
    const auto found = ids_.find(text);
    return found == ids_.end() ? std::nullopt : std::optional<int32_t>(found->second);
  }

  std::optional<int32_t> special(const std::string& name) const {
    if (!file_.has(key_of(name))) return std::nullopt;
    const int64_t id = file_.integer(key_of(name));
    // Converters write -1 or 2^32 - 1 for "none".
    if (id == -1 || id == int64_t{0xFFFFFFFF}) return std::nullopt;
    if (id < 0 || id >= static_cast<int64_t>(size())) {
      fail(file_, name, "is " + std::to_string(id) + "; the vocabulary has ids 0 to " + std::to_string(size() - 1));
    }
    return static_cast<int32_t>(id);
  }

 private:
  void check_token(size_t id) {
    const auto name = [id] { return "token " + std::to_string(id); };
    if (tokens_[id].empty()) fail(file_, "tokens", name() + " is empty");
    if (!is_valid_utf8(tokens_[id])) fail(file_, "tokens", name() + " is not UTF-8");
    const auto [other, fresh] = ids_.emplace(tokens_[id], static_cast<int32_t>(id));
    if (!fresh) fail(file_, "tokens", name() + " is the same as token " + std::to_string(other->second));
  }

  void read_types() {
    types_.assign(size(), PieceType::kNormal);
    if (!file_.has(key_of("token_type"))) return;
    const auto& raw = file_.integers(key_of("token_type"));
    if (raw.size() != size()) {
      fail(file_, "token_type",
           "has " + std::to_string(raw.size()) + " values for " + std::to_string(size()) + " tokens");
    }
    for (size_t id = 0; id < size(); ++id) {
      // 0 is "undefined"; what later versions may add is taken for ordinary as well.
      if (raw[id] >= 1 && raw[id] <= 6) types_[id] = static_cast<PieceType>(raw[id]);
    }
  }

  const GgufFile& file_;
  const std::vector<std::string>& tokens_;
  std::vector<PieceType> types_;
  std::unordered_map<std::string, int32_t> ids_;
};

bool is_added(PieceType type) { return type == PieceType::kControl || type == PieceType::kUserDefined; }

Json added_token(const Vocabulary& vocabulary, size_t id, bool special) {
  return {{"id", id},
          {"content", vocabulary.text(id)},
          {"single_word", false},
          {"lstrip", false},
          {"rstrip", false},
          {"normalized", false},
          {"special", special}};
}

Json added_tokens(const Vocabulary& vocabulary) {
  Json tokens = Json::array();
  for (size_t id = 0; id < vocabulary.size(); ++id) {
    const PieceType type = vocabulary.type(id);
    if (is_added(type) || type == PieceType::kUnknown)
      tokens.push_back(added_token(vocabulary, id, type != PieceType::kUserDefined));
  }
  return tokens;
}

// What the tokenizer adds around a text.
struct Frame {
  std::optional<int32_t> bos;
  std::optional<int32_t> eos;
};

Frame read_frame(const GgufFile& file, const Vocabulary& vocabulary, bool add_bos) {
  Frame frame;
  if (flag(file, "add_bos_token", add_bos)) frame.bos = vocabulary.special("bos_token_id");
  if (flag(file, "add_eos_token", false)) frame.eos = vocabulary.special("eos_token_id");
  return frame;
}

Json post_processor(const Vocabulary& vocabulary, const Frame& frame) {
  if (!frame.bos && !frame.eos) return nullptr;
  Json specials = Json::object();
  const auto framed = [&](Json& items, const char* sequence, int type) {
    const auto special = [&](const std::optional<int32_t>& id) {
      if (!id) return;
      const std::string& text = vocabulary.text(static_cast<size_t>(*id));
      specials[text] = {{"id", text}, {"ids", {*id}}, {"tokens", {text}}};
      items.push_back({{"SpecialToken", {{"id", text}, {"type_id", type}}}});
    };
    special(frame.bos);
    items.push_back({{"Sequence", {{"id", sequence}, {"type_id", type}}}});
    special(frame.eos);
  };
  Json single = Json::array();
  framed(single, "A", 0);
  Json pair = Json::array();
  framed(pair, "A", 0);
  framed(pair, "B", 1);
  return {{"type", "TemplateProcessing"}, {"single", single}, {"pair", pair}, {"special_tokens", specials}};
}

Json byte_level(bool use_regex) {
  return {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", use_regex}};
}

Json bpe_model(const Vocabulary& vocabulary, Json merges) {
  Json vocab = Json::object();
  for (size_t id = 0; id < vocabulary.size(); ++id) vocab[vocabulary.text(id)] = id;
  return {{"type", "BPE"},
          {"dropout", nullptr},
          {"unk_token", nullptr},
          {"continuing_subword_prefix", nullptr},
          {"end_of_word_suffix", nullptr},
          {"fuse_unk", false},
          {"byte_fallback", false},
          {"ignore_merges", false},
          {"vocab", std::move(vocab)},
          {"merges", std::move(merges)}};
}

Json tokenizer_json(Json normalizer, Json pre_tokenizer, Json model, Json post, Json decoder, Json added) {
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens", std::move(added)},
          {"normalizer", std::move(normalizer)},
          {"pre_tokenizer", std::move(pre_tokenizer)},
          {"post_processor", std::move(post)},
          {"decoder", std::move(decoder)},
          {"model", std::move(model)}};
}

Json ranked_merges(const GgufFile& file) {
  Json merges = Json::array();
  for (const std::string& merge : file.strings(key_of("merges"))) {
    const size_t rank = merges.size();
    // The first character is part of the left token, even where it is a space.
    const size_t space = merge.find(' ', 1);
    if (space == std::string::npos || space + 1 >= merge.size() || !is_valid_utf8(merge)) {
      fail(file, "merges", "merge " + std::to_string(rank) + " must be two tokens with a space in between");
    }
    merges.push_back({merge.substr(0, space), merge.substr(space + 1)});
  }
  return merges;
}

Json byte_level_tokenizer(const GgufFile& file, const Vocabulary& vocabulary) {
  const PreKind& kind = pre_kind(file);
  Json model = bpe_model(vocabulary, ranked_merges(file));
  model["ignore_merges"] = kind.ignore_merges;
  Json normalizer = nullptr;
  if (kind.nfc) normalizer = {{"type", "NFC"}};
  return tokenizer_json(std::move(normalizer), byte_level_pre_tokenizer(kind), std::move(model),
                        post_processor(vocabulary, read_frame(file, vocabulary, kind.add_bos)), byte_level(true),
                        added_tokens(vocabulary));
}

bool has_all_bytes(const Vocabulary& vocabulary) {
  std::array<bool, 256> seen{};
  for (size_t id = 0; id < vocabulary.size(); ++id) {
    if (vocabulary.type(id) != PieceType::kByte) continue;
    if (const auto byte = byte_of_fallback_token(vocabulary.text(id))) seen[static_cast<unsigned char>(*byte)] = true;
  }
  return std::all_of(seen.begin(), seen.end(), [](bool byte) { return byte; });
}

const std::vector<double>& read_scores(const GgufFile& file, const Vocabulary& vocabulary) {
  const auto& scores = file.numbers(key_of("scores"));
  if (scores.size() != vocabulary.size()) {
    fail(file, "scores",
         "has " + std::to_string(scores.size()) + " values for " + std::to_string(vocabulary.size()) + " tokens");
  }
  for (size_t id = 0; id < scores.size(); ++id) {
    if (!std::isfinite(scores[id])) fail(file, "scores", "the score of token " + std::to_string(id) + " is no number");
  }
  return scores;
}

SentencePieceVocabulary sentencepiece_vocabulary(const GgufFile& file, const Vocabulary& vocabulary) {
  const std::vector<double>& scores = read_scores(file, vocabulary);
  SentencePieceVocabulary model;
  model.byte_fallback = has_all_bytes(vocabulary);
  model.add_dummy_prefix = flag(file, "add_space_prefix", true);
  model.bos = vocabulary.special("bos_token_id");
  model.eos = vocabulary.special("eos_token_id");
  model.unk = vocabulary.special("unknown_token_id");
  for (size_t id = 0; id < vocabulary.size(); ++id) {
    model.pieces.push_back({vocabulary.text(id), static_cast<float>(scores[id]), vocabulary.type(id)});
    if (vocabulary.type(id) == PieceType::kUnknown && !model.unk) model.unk = static_cast<int32_t>(id);
  }
  if (!model.unk) fail(file, "unknown_token_id", "is missing, and no token has the type \"unknown\"");
  // sentencepiece wants exactly one unknown piece.
  for (SentencePiece& piece : model.pieces) {
    if (piece.type == PieceType::kUnknown) piece.type = PieceType::kControl;
  }
  model.pieces[static_cast<size_t>(*model.unk)].type = PieceType::kUnknown;
  return model;
}

// sentencepiece joins the pair whose union has the highest score; as ranked merges that is every cut of every
// piece into two others, by falling score.
Json sentencepiece_merges(const SentencePieceVocabulary& model, const Vocabulary& vocabulary) {
  struct Cut {
    float score;
    int32_t left;
    int32_t right;
    size_t left_size;
  };
  std::vector<Cut> cuts;
  for (const SentencePiece& piece : model.pieces) {
    if (piece.type != PieceType::kNormal) continue;
    for (size_t at = utf8_length(piece.text[0]); at < piece.text.size(); at += utf8_length(piece.text[at])) {
      const auto left = vocabulary.find(piece.text.substr(0, at));
      const auto right = vocabulary.find(piece.text.substr(at));
      if (left && right) cuts.push_back({piece.score, *left, *right, at});
    }
  }
  std::stable_sort(cuts.begin(), cuts.end(), [](const Cut& a, const Cut& b) {
    return std::tie(b.score, a.left, a.right) < std::tie(a.score, b.left, b.right);
  });
  Json merges = Json::array();
  for (const Cut& cut : cuts) {
    merges.push_back({vocabulary.text(static_cast<size_t>(cut.left)), vocabulary.text(static_cast<size_t>(cut.right))});
  }
  return merges;
}

Json replace(std::string_view pattern, std::string_view content) {
  return {{"type", "Replace"}, {"pattern", {{"String", pattern}}}, {"content", content}};
}

Json metaspace_tokenizer(const GgufFile& file, const Vocabulary& vocabulary, Json merges, int32_t unknown,
                         bool has_dummy_prefix) {
  Json model = bpe_model(vocabulary, std::move(merges));
  model["unk_token"] = vocabulary.text(static_cast<size_t>(unknown));
  model["fuse_unk"] = true;
  model["byte_fallback"] = has_all_bytes(vocabulary);
  Json normalizers = Json::array();
  if (has_dummy_prefix) normalizers.push_back({{"type", "Prepend"}, {"prepend", kMetaspace}});
  normalizers.push_back(replace(" ", kMetaspace));
  Json decoders = {replace(kMetaspace, " "), {{"type", "ByteFallback"}}, {{"type", "Fuse"}}};
  if (has_dummy_prefix) decoders.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  return tokenizer_json({{"type", "Sequence"}, {"normalizers", normalizers}}, nullptr, std::move(model),
                        post_processor(vocabulary, read_frame(file, vocabulary, true)),
                        {{"type", "Sequence"}, {"decoders", decoders}}, added_tokens(vocabulary));
}

Json metaspace_tokenizer(const GgufFile& file, const Vocabulary& vocabulary) {
  const SentencePieceVocabulary pieces = sentencepiece_vocabulary(file, vocabulary);
  return metaspace_tokenizer(file, vocabulary, sentencepiece_merges(pieces, vocabulary), *pieces.unk,
                             pieces.add_dummy_prefix);
}

Json ranked_metaspace_tokenizer(const GgufFile& file, const Vocabulary& vocabulary) {
  const auto unknown = vocabulary.special("unknown_token_id");
  if (!unknown) fail(file, "unknown_token_id", "is missing");
  return metaspace_tokenizer(file, vocabulary, ranked_merges(file), *unknown, flag(file, "add_space_prefix", false));
}

// Of the models that are not sentencepiece's.
Json ranked_tokenizer(const GgufFile& file, const Vocabulary& vocabulary) {
  return tokenizer_model(file) == kRankedMetaspace ? ranked_metaspace_tokenizer(file, vocabulary)
                                                   : byte_level_tokenizer(file, vocabulary);
}

std::string architecture_key(const GgufFile& file, const std::string& name) {
  return (file.has("general.architecture") ? file.string("general.architecture") : "llama") + "." + name;
}

Json tokenizer_config(const GgufFile& file, const Vocabulary& vocabulary) {
  Json config = {{"tokenizer_class", "PreTrainedTokenizerFast"}, {"clean_up_tokenization_spaces", false}};
  const std::pair<const char*, const char*> specials[] = {{"bos_token", "bos_token_id"},
                                                          {"eos_token", "eos_token_id"},
                                                          {"unk_token", "unknown_token_id"},
                                                          {"pad_token", "padding_token_id"}};
  for (const auto& [name, key] : specials) {
    const auto id = vocabulary.special(key);
    config[name] = id ? Json(vocabulary.text(static_cast<size_t>(*id))) : Json(nullptr);
  }
  Json added = Json::object();
  for (Json& token : added_tokens(vocabulary)) {
    const std::string id = std::to_string(token["id"].get<int64_t>());
    token.erase("id");
    added[id] = std::move(token);
  }
  config["added_tokens_decoder"] = std::move(added);
  const std::string context = architecture_key(file, "context_length");
  if (file.has(context)) config["model_max_length"] = file.integer(context);
  if (file.has("tokenizer.chat_template")) {
    const std::string& chat_template = file.string("tokenizer.chat_template");
    if (!is_valid_utf8(chat_template)) {
      throw_error(ErrorKind::kBadInput, file.path().string(), ": tokenizer.chat_template: is not UTF-8");
    }
    config["chat_template"] = chat_template;
  }
  return config;
}

SpecialTokenNames special_names(const Vocabulary& vocabulary) {
  const auto name = [&](const char* key) -> std::optional<std::string> {
    const auto id = vocabulary.special(key);
    return id ? std::optional(vocabulary.text(static_cast<size_t>(*id))) : std::nullopt;
  };
  return {name("bos_token_id"), name("eos_token_id")};
}

std::unique_ptr<Tokenizer> make_llama_tokenizer(const GgufFile& file, const Vocabulary& vocabulary) {
  const SentencePieceVocabulary model = sentencepiece_vocabulary(file, vocabulary);
  const SpecialTokenNames names = special_names(vocabulary);
  SentencePieceOptions options;
  options.bos = names.bos;
  options.eos = names.eos;
  options.add_bos = names.bos && flag(file, "add_bos_token", true);
  options.add_eos = names.eos && flag(file, "add_eos_token", false);
  for (size_t id = 0; id < vocabulary.size(); ++id) {
    if (vocabulary.type(id) == PieceType::kUserDefined)
      options.added.push_back({.content = vocabulary.text(id), .id = static_cast<int32_t>(id)});
  }
  return make_sentencepiece_tokenizer(serialize_sentencepiece_model(model), file.path().string(), options);
}

}  // namespace

std::unique_ptr<Tokenizer> make_gguf_tokenizer(const GgufFile& file) {
  const std::string model = tokenizer_model(file);
  const Vocabulary vocabulary(file);
  if (model == "llama") return make_llama_tokenizer(file, vocabulary);
  return make_json_tokenizer(ranked_tokenizer(file, vocabulary), file.path().string(), special_names(vocabulary));
}

GgufTokenizerFiles tokenizer_files_of_gguf(const GgufFile& file) {
  const std::string model = tokenizer_model(file);
  const Vocabulary vocabulary(file);
  GgufTokenizerFiles files;
  files.config = tokenizer_config(file, vocabulary);
  if (model == "llama") {
    files.tokenizer = metaspace_tokenizer(file, vocabulary);
    files.sentencepiece = serialize_sentencepiece_model(sentencepiece_vocabulary(file, vocabulary));
  } else {
    files.tokenizer = ranked_tokenizer(file, vocabulary);
  }
  return files;
}

Json tokenizer_config_of_gguf(const GgufFile& file) { return tokenizer_config(file, Vocabulary(file)); }

}  // namespace dynslice
