#include "dynslice/text/tokenizer/tokenizer.h"

#include <algorithm>
#include <fstream>

#include "dynslice/formats/gguf/gguf_file.h"
#include "dynslice/support/error.h"
#include "dynslice/support/files.h"
#include "dynslice/support/json.h"
#include "text/tokenizer/bpe_model.h"
#include "text/tokenizer/sentencepiece_tokenizer.h"
#include "text/tokenizer/tokenizer_folder.h"
#include "text/tokenizer/tokenizer_gguf.h"
#include "text/tokenizer/tokenizer_json.h"

namespace dynslice {
namespace {

namespace fs = std::filesystem;

// By its name or, for a file that a cache has renamed, by its first bytes.
bool is_gguf(const fs::path& path) {
  if (!fs::is_regular_file(path)) return false;
  std::string magic(4, '\0');
  return path.extension() == ".gguf" ||
         (std::ifstream(path, std::ios::binary).read(magic.data(), 4) && magic == "GGUF");
}

// A JSON file of the folder, null when it is not there.
Json optional_json(const fs::path& path) { return fs::exists(path) ? parse_json_file(path) : Json(nullptr); }

// A token as the files of transformers name it: "<s>", or {"content": "<s>", ...}.
std::optional<std::string> token_named(const Json& json, const fs::path& path, const std::string& key) {
  if (json.is_null()) return std::nullopt;
  const JsonReader reader(json, path.string());
  if (!reader.has(key)) return std::nullopt;
  if (reader.raw().at(key).is_object()) return reader.object(key).string("content");
  return reader.string(key);
}

AddedToken read_added_token(const JsonReader& reader, int64_t id) {
  AddedToken token;
  token.content = reader.string("content");
  token.id = static_cast<int32_t>(id);
  token.special = reader.boolean_or("special", false);
  token.single_word = reader.boolean_or("single_word", false);
  token.lstrip = reader.boolean_or("lstrip", false);
  token.rstrip = reader.boolean_or("rstrip", false);
  return token;
}

// "added_tokens_decoder" of tokenizer_config.json: {"32000": {"content": "<pad>", ...}}
std::vector<AddedToken> read_added_tokens_decoder(const JsonReader& config) {
  std::vector<AddedToken> tokens;
  if (!config.has("added_tokens_decoder")) return tokens;
  const JsonReader decoder = config.object("added_tokens_decoder");
  for (const auto& [key, value] : decoder.raw().items()) {
    const bool digits = !key.empty() && key.size() < 10 && key.find_first_not_of("0123456789") == std::string::npos;
    if (!digits || std::stoll(key) > kMaxTokenId) {
      throw_error(ErrorKind::kBadInput, decoder.where(), ": \"", key, "\" is no token id; ids lie in [0, ", kMaxTokenId,
                  "]");
    }
    tokens.push_back(read_added_token(JsonReader(value, decoder.where() + "." + key), std::stoll(key)));
  }
  return tokens;
}

// added_tokens.json: {"<pad>": 32000}
std::vector<AddedToken> read_added_tokens_file(const fs::path& path) {
  std::vector<AddedToken> tokens;
  const Json json = optional_json(path);
  if (json.is_null()) return tokens;
  const JsonReader reader(json, path.string());
  for (const auto& item : json.items()) {
    AddedToken token;
    token.content = item.key();
    token.id = static_cast<int32_t>(reader.integer(item.key(), 0, kMaxTokenId));
    tokens.push_back(std::move(token));
  }
  return tokens;
}

}  // namespace

FolderConfig read_folder_config(const fs::path& folder) {
  const fs::path config_path = folder / "tokenizer_config.json";
  const fs::path map_path = folder / "special_tokens_map.json";
  const Json config = optional_json(config_path);
  const Json map = optional_json(map_path);
  FolderConfig result;
  const auto name = [&](const std::string& key) {
    const auto from_config = token_named(config, config_path, key);
    return from_config ? from_config : token_named(map, map_path, key);
  };
  result.names = {name("bos_token"), name("eos_token")};
  result.unk = name("unk_token");
  result.pad = name("pad_token");
  result.added = read_added_tokens_file(folder / "added_tokens.json");
  if (config.is_null()) return result;
  const JsonReader reader(config, config_path.string());
  result.add_bos = reader.boolean_or("add_bos_token", true);
  result.add_eos = reader.boolean_or("add_eos_token", false);
  result.legacy = reader.boolean_or("legacy", true);
  // The fuller description of a token comes last: it replaces that of added_tokens.json.
  for (AddedToken& token : read_added_tokens_decoder(reader)) result.added.push_back(std::move(token));
  return result;
}

namespace {

std::unique_ptr<Tokenizer> load_from_folder(const fs::path& folder) {
  const fs::path json = folder / "tokenizer.json";
  const fs::path model = folder / "tokenizer.model";
  if (fs::exists(json))
    return make_json_tokenizer(parse_json_file(json), json.string(), read_folder_config(folder).names);
  if (!fs::exists(model)) {
    throw_error(ErrorKind::kMissingData, folder.string(),
                ": has no tokenizer; put tokenizer.json or tokenizer.model of the model there");
  }
  const FolderConfig config = read_folder_config(folder);
  SentencePieceOptions options;
  options.add_bos = config.add_bos;
  options.add_eos = config.add_eos;
  options.prefix_every_part = config.legacy;
  options.bos = config.names.bos;
  options.eos = config.names.eos;
  options.added = config.added;
  return make_sentencepiece_tokenizer(read_file(model), model.string(), options);
}

bool is_tokenizer_file(const std::string& name) {
  constexpr const char* kNames[] = {
      "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
      "vocab.json",     "merges.txt",      "generation_config.json"};
  return std::find(std::begin(kNames), std::end(kNames), name) != std::end(kNames) ||
         name.starts_with("chat_template.");
}

std::vector<std::string> copy_tokenizer_files(const fs::path& source, const fs::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(source)) {
    const std::string name = entry.path().filename().string();
    if (entry.is_regular_file() && is_tokenizer_file(name)) names.push_back(name);
  }
  std::sort(names.begin(), names.end());
  if (fs::equivalent(source, folder)) return names;
  for (const std::string& name : names) write_file_atomically(folder / name, read_file(source / name));
  return names;
}

std::vector<std::string> write_gguf_tokenizer_files(const fs::path& source, const fs::path& folder) {
  const GgufTokenizerFiles files = tokenizer_files_of_gguf(GgufFile(source));
  std::vector<std::string> names = {"tokenizer.json", "tokenizer_config.json"};
  write_file_atomically(folder / "tokenizer.json",
                        files.tokenizer.dump(-1, ' ', false, Json::error_handler_t::replace));
  write_file_atomically(folder / "tokenizer_config.json", to_text(files.config));
  if (!files.sentencepiece.empty()) {
    write_file_atomically(folder / "tokenizer.model", files.sentencepiece);
    names.push_back("tokenizer.model");
  }
  return names;
}

[[noreturn]] void throw_not_a_checkpoint(const fs::path& path) {
  throw_error(ErrorKind::kMissingData, path.string(),
              fs::exists(path) ? ": is neither a folder nor a .gguf file" : ": does not exist",
              "; give the folder of a model or a .gguf file");
}

}  // namespace

std::unique_ptr<Tokenizer> load_tokenizer(const fs::path& checkpoint) {
  if (fs::is_directory(checkpoint)) return load_from_folder(checkpoint);
  if (is_gguf(checkpoint)) return make_gguf_tokenizer(GgufFile(checkpoint));
  throw_not_a_checkpoint(checkpoint);
}

std::vector<std::string> write_tokenizer_files(const fs::path& checkpoint, const fs::path& folder) {
  std::error_code ignored;
  fs::create_directories(folder, ignored);
  if (!fs::is_directory(folder))
    throw_error(ErrorKind::kMissingData, folder.string(), ": cannot be made a folder; choose another");
  if (fs::is_directory(checkpoint)) return copy_tokenizer_files(checkpoint, folder);
  if (is_gguf(checkpoint)) return write_gguf_tokenizer_files(checkpoint, folder);
  throw_not_a_checkpoint(checkpoint);
}

}  // namespace dynslice
