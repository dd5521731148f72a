#include "dynslice/text/tokenizer/gguf_vocabulary.h"

#include <algorithm>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "dynslice/support/error.h"
#include "dynslice/support/files.h"
#include "dynslice/support/json.h"
#include "dynslice/text/tokenizer/tokenizer.h"
#include "dynslice/text/tokenizer/tokenizer_unicode.h"
#include "text/tokenizer/bpe_model.h"
#include "text/tokenizer/gguf_pre_kinds.h"
#include "text/tokenizer/sentencepiece_proto.h"
#include "text/tokenizer/tokenizer_decoder.h"
#include "text/tokenizer/tokenizer_folder.h"
#include "text/tokenizer/tokenizer_json_parts.h"

namespace dynslice {
namespace {

namespace fs = std::filesystem;

// Of tokens that no merge makes: below every real one, as llama.cpp's converter has it.
constexpr double kNoScore = -1000.0;

std::string key_of(const std::string& name) { return "tokenizer.ggml." + name; }

// The tokens by id. What the embedding has rows for and the tokenizer has not is filled with "[PAD17]".
class TokenTable {
 public:
  TokenTable(int64_t size, std::string where) : where_(std::move(where)) {
    tokens_.resize(static_cast<size_t>(size));
    types_.assign(tokens_.size(), static_cast<int64_t>(PieceType::kUnused));
    scores_.assign(tokens_.size(), kNoScore);
  }

  void put(int64_t id, const std::string& text, PieceType type, double score = kNoScore) {
    if (id < 0 || id >= static_cast<int64_t>(tokens_.size())) {
      throw_error(ErrorKind::kBadInput, where_, ": token \"", text, "\" has id ", id, "; the model's embedding has ",
                  tokens_.size(), " rows");
    }
    const auto at = static_cast<size_t>(id);
    tokens_[at] = text;
    types_[at] = static_cast<int64_t>(type);
    scores_[at] = score;
  }

  // An added token. Those that the vocabulary marks as unknown, control or byte stay what they are.
  void add(const AddedToken& token) {
    const bool is_there = token.id >= 0 && token.id < static_cast<int32_t>(tokens_.size());
    const auto kept = is_there ? static_cast<PieceType>(types_[static_cast<size_t>(token.id)]) : PieceType::kUnused;
    if (kept == PieceType::kUnknown || kept == PieceType::kControl || kept == PieceType::kByte) return;
    put(token.id, token.content, token.special ? PieceType::kControl : PieceType::kUserDefined);
  }

  std::optional<int64_t> find(const std::optional<std::string>& text) const {
    const auto found = text ? std::ranges::find(tokens_, *text) : tokens_.end();
    return found == tokens_.end() || text->empty() ? std::nullopt : std::optional<int64_t>(found - tokens_.begin());
  }

  void write(GgufMetadata& metadata, bool with_scores) {
    std::unordered_map<std::string, size_t> ids;
    for (size_t id = 0; id < tokens_.size(); ++id) {
      if (tokens_[id].empty()) tokens_[id] = "[PAD" + std::to_string(id) + "]";
      const auto [other, fresh] = ids.emplace(tokens_[id], id);
      if (!fresh) {
        throw_error(ErrorKind::kBadInput, where_, ": tokens ", other->second, " and ", id, " are both \"", tokens_[id],
                    "\"; GGUF needs them to differ");
      }
    }
    metadata.emplace_back(key_of("tokens"), std::move(tokens_));
    if (with_scores) metadata.emplace_back(key_of("scores"), std::move(scores_));
    metadata.emplace_back(key_of("token_type"), std::move(types_));
  }

 private:
  std::string where_;
  std::vector<std::string> tokens_;
  std::vector<int64_t> types_;
  std::vector<double> scores_;
};

GgufMetadata copy_metadata(const GgufFile& file) {
  GgufMetadata metadata;
  for (const auto& [key, value] : file.metadata()) {
    if (key.starts_with("tokenizer.")) metadata.emplace_back(key, value);
  }
  return metadata;
}

// What a folder's tokenizer adds around every text, and which tokens are special.
struct Specials {
  std::optional<int64_t> bos, eos, unk, pad;
  bool add_bos = false;
  bool add_eos = false;
};

Specials find_specials(const Tokenizer& tokenizer, const FolderConfig& folder, const TokenTable& tokens,
                       const ModelTokens& model) {
  Specials specials;
  specials.bos = tokenizer.bos_id() ? std::optional<int64_t>(*tokenizer.bos_id()) : model.bos_id;
  specials.eos = tokenizer.eos_id() ? std::optional<int64_t>(*tokenizer.eos_id()) : model.eos_id;
  specials.unk = tokens.find(folder.unk);
  specials.pad = tokens.find(folder.pad);
  specials.add_bos = tokenizer.adds_bos();
  const auto bare = tokenizer.encode("a", false), framed = tokenizer.encode("a", true);
  const size_t behind_bos = framed.size() - (specials.add_bos ? 1 : 0);
  specials.add_eos = behind_bos > bare.size() && specials.eos && framed.back() == *specials.eos;
  return specials;
}

void write_specials(const Specials& specials, const ModelTokens& model, GgufMetadata& metadata) {
  const std::pair<const char*, std::optional<int64_t>> ids[] = {{"bos_token_id", specials.bos},
                                                                {"eos_token_id", specials.eos},
                                                                {"unknown_token_id", specials.unk},
                                                                {"padding_token_id", specials.pad}};
  for (const auto& [name, id] : ids) {
    if (id && *id >= 0 && *id < model.vocab_size) metadata.emplace_back(key_of(name), *id);
  }
  metadata.emplace_back(key_of("add_bos_token"), specials.add_bos);
  metadata.emplace_back(key_of("add_eos_token"), specials.add_eos);
}

// chat_template.jinja, else "chat_template" of tokenizer_config.json: one, or several by name.
void write_chat_template(const fs::path& folder, GgufMetadata& metadata) {
  const fs::path file = folder / "chat_template.jinja", config_path = folder / "tokenizer_config.json";
  if (fs::exists(file)) {
    std::string text = read_file(file);
    if (!is_valid_utf8(text)) throw_error(ErrorKind::kBadInput, file.string(), ": is not UTF-8");
    metadata.emplace_back("tokenizer.chat_template", std::move(text));
    return;
  }
  if (!fs::exists(config_path)) return;
  const Json config = parse_json_file(config_path);
  const JsonReader reader(config, config_path.string());
  if (!reader.has("chat_template")) return;
  const Json& value = reader.raw().at("chat_template");
  if (!value.is_array()) {
    metadata.emplace_back("tokenizer.chat_template", reader.string("chat_template"));
    return;
  }
  std::vector<std::string> names;
  for (const Json& item : value) {
    const JsonReader entry(item, reader.where() + ": chat_template[]");
    const std::string name = entry.string("name"), text = entry.string("template");
    const bool plain = !name.empty() && std::ranges::all_of(name, [](char c) {
      return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
    });
    if (!plain) entry.fail("name", "a name of letters, digits, _ and -");
    if (std::ranges::find(names, name) != names.end()) entry.fail("name", "given once");
    if (name == "default") {
      metadata.emplace_back("tokenizer.chat_template", text);
    } else {
      metadata.emplace_back("tokenizer.chat_template." + name, text);
    }
    names.push_back(name);
  }
  std::erase(names, "default");
  if (!names.empty()) metadata.emplace_back("tokenizer.chat_templates", std::move(names));
}

// Whether words are written in bytes' printable characters.
bool is_byte_level(const Json& pre_tokenizer) {
  if (!pre_tokenizer.is_object()) return false;
  if (pre_tokenizer.value("type", "") == "ByteLevel") return true;
  return pre_tokenizer.contains("pretokenizers") && std::ranges::any_of(pre_tokenizer["pretokenizers"], is_byte_level);
}

bool has_part(const Json& json, const std::string& list, const std::string& type) {
  if (!json.is_object()) return false;
  if (json.value("type", "") == type) return true;
  return json.contains(list) &&
         std::ranges::any_of(json[list], [&](const Json& part) { return has_part(part, list, type); });
}

// "a b", or ["a", "b"]: read_bpe_model has checked that it is one of them.
std::pair<std::string, std::string> merge_of(const Json& json) {
  if (json.is_array()) return {json[0].get<std::string>(), json[1].get<std::string>()};
  const auto text = json.get<std::string>();
  const size_t space = text.find(' ');
  return {text.substr(0, space), text.substr(space + 1)};
}

Json merges_of(const Json& model) {
  Json merges = model.at("merges");
  if (!merges.empty() && merges.front().is_string() && merges.front().get<std::string>().starts_with("#version")) {
    merges.erase(0);
  }
  return merges;
}

void put_added_tokens(const Json& json, const std::string& where, TokenTable& tokens) {
  const auto model = read_bpe_model(json.at("model"), where + ": model");
  const Json added = json.contains("added_tokens") ? json.at("added_tokens") : Json(nullptr);
  for (const AddedToken& token : read_added_tokens(added, where + ": added_tokens", *model)) tokens.add(token);
}

void write_byte_level(const Json& json, const std::string& where, TokenTable& tokens, GgufMetadata& metadata) {
  const PreKind& kind = recognise_pre_kind(json, where);
  metadata.emplace_back(key_of("model"), std::string("gpt2"));
  metadata.emplace_back(key_of("pre"), std::string(kind.names.front()));
  for (const auto& [text, id] : json.at("model").at("vocab").items()) {
    tokens.put(id.get<int64_t>(), text, PieceType::kNormal);
  }
  put_added_tokens(json, where, tokens);
  std::vector<std::string> merges;
  for (const Json& item : merges_of(json.at("model"))) {
    const auto [left, right] = merge_of(item);
    merges.push_back(left + " " + right);
  }
  metadata.emplace_back(key_of("merges"), std::move(merges));
}

// Sentencepiece in the form of tokenizer.json: a token's score is the rank of the first merge that makes it.
void write_metaspace(const Json& json, const std::string& where, TokenTable& tokens, GgufMetadata& metadata) {
  const Json& model = json.at("model");
  std::unordered_map<std::string, double> scores;
  for (const Json& item : merges_of(model)) {
    const auto [left, right] = merge_of(item);
    scores.emplace(left + right, -static_cast<double>(scores.size()));
  }
  const bool byte_fallback = model.value("byte_fallback", false);
  const std::string unknown = model.contains("unk_token") && model["unk_token"].is_string() ? model["unk_token"] : "";
  for (const auto& [text, id] : model.at("vocab").items()) {
    const auto score = scores.find(text);
    PieceType type = PieceType::kNormal;
    if (byte_fallback && byte_of_fallback_token(text)) type = PieceType::kByte;
    if (!unknown.empty() && text == unknown) type = PieceType::kUnknown;
    tokens.put(id.get<int64_t>(), text, type, score == scores.end() ? kNoScore - 1e6 : score->second);
  }
  put_added_tokens(json, where, tokens);
  const auto part = [&](const char* key) { return json.contains(key) ? json.at(key) : Json(nullptr); };
  metadata.emplace_back(key_of("model"), std::string("llama"));
  metadata.emplace_back(key_of("pre"), std::string("default"));
  const Json pre_tokenizer = part("pre_tokenizer");
  const bool prefix = has_part(part("normalizer"), "normalizers", "Prepend") ||
                      (has_part(pre_tokenizer, "pretokenizers", "Metaspace") &&
                       pre_tokenizer.value("prepend_scheme", "always") != "never");
  metadata.emplace_back(key_of("add_space_prefix"), prefix);
}

void write_sentencepiece(const fs::path& file, const FolderConfig& folder, TokenTable& tokens, Specials& specials,
                         GgufMetadata& metadata) {
  const SentencePieceVocabulary model = read_sentencepiece_vocabulary(read_file(file), file.string());
  for (size_t id = 0; id < model.pieces.size(); ++id) {
    const SentencePiece& piece = model.pieces[id];
    tokens.put(static_cast<int64_t>(id), piece.text, piece.type, piece.score);
  }
  for (const AddedToken& token : folder.added) tokens.add(token);
  specials.unk = model.unk;
  metadata.emplace_back(key_of("model"), std::string("llama"));
  metadata.emplace_back(key_of("pre"), std::string("default"));
  metadata.emplace_back(key_of("add_space_prefix"), model.add_dummy_prefix);
}

GgufMetadata folder_metadata(const fs::path& folder, const ModelTokens& model) {
  const auto tokenizer = load_tokenizer(folder);  // which checks every part of it
  const FolderConfig config = read_folder_config(folder);
  const fs::path json_path = folder / "tokenizer.json", model_path = folder / "tokenizer.model";
  const Json json = fs::exists(json_path) ? parse_json_file(json_path) : Json(nullptr);
  TokenTable tokens(model.vocab_size, (json.is_null() ? model_path : json_path).string());
  GgufMetadata metadata;
  Specials from_file;
  const bool byte_level = !json.is_null() && json.contains("pre_tokenizer") && is_byte_level(json["pre_tokenizer"]);
  if (byte_level) {
    write_byte_level(json, json_path.string(), tokens, metadata);
  } else if (fs::exists(model_path)) {
    write_sentencepiece(model_path, config, tokens, from_file, metadata);
  } else {
    write_metaspace(json, json_path.string(), tokens, metadata);
  }
  Specials specials = find_specials(*tokenizer, config, tokens, model);
  if (from_file.unk) specials.unk = from_file.unk;
  tokens.write(metadata, !byte_level);
  write_specials(specials, model, metadata);
  write_chat_template(folder, metadata);
  return metadata;
}

}  // namespace

GgufMetadata gguf_tokenizer_metadata(const fs::path& checkpoint, const ModelTokens& model) {
  if (!fs::is_directory(checkpoint)) return copy_metadata(GgufFile(checkpoint));
  return folder_metadata(checkpoint, model);
}

}  // namespace dynslice
