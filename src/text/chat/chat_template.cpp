#include "dynslice/text/chat/chat_template.h"

#include <algorithm>

#include "dynslice/formats/gguf/gguf_file.h"
#include "dynslice/support/error.h"
#include "dynslice/support/files.h"
#include "dynslice/text/tokenizer/tokenizer_unicode.h"
#include "text/jinja/evaluator.h"
#include "text/tokenizer/tokenizer_folder.h"
#include "text/tokenizer/tokenizer_gguf.h"

namespace dynslice {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMaxBytes = uint64_t{1} << 20;

using Tokens = std::vector<std::pair<std::string, std::string>>;

// One line of a length that people read, whatever the template says.
[[noreturn]] void throw_template_error(const std::string& where, const jinja::TemplateError& error) {
  constexpr size_t kLongest = 500;
  std::string message = error.what();
  if (message.size() > kLongest) message = replace_invalid_utf8(message.substr(0, kLongest)) + " ...";
  std::replace(message.begin(), message.end(), '\n', ' ');
  throw_error(ErrorKind::kBadInput, where, error.line() > 0 ? ": line " + std::to_string(error.line()) : "", ": ",
              message);
}

Tokens tokens_of_folder(const fs::path& folder) {
  const FolderConfig config = read_folder_config(folder);
  Tokens tokens;
  const auto add = [&](const char* name, const std::optional<std::string>& token) {
    if (token) tokens.emplace_back(name, *token);
  };
  add("bos_token", config.names.bos);
  add("eos_token", config.names.eos);
  add("unk_token", config.unk);
  add("pad_token", config.pad);
  return tokens;
}

// "chat_template" of a JSON file: the template, or several with a name each.
std::optional<std::string> template_in(const fs::path& path) {
  const Json json = parse_json_file(path);
  const JsonReader reader(json, path.string());
  const char* key = "chat_template";
  if (!reader.has(key)) return std::nullopt;
  const Json& value = json.at(key);
  if (!value.is_array()) return reader.string(key);
  std::string names;
  for (const Json& item : value) {
    const JsonReader one(item, path.string() + ": " + key);
    if (one.string("name") == "default") return one.string("template");
    names += (names.empty() ? "" : ", ") + one.string("name");
  }
  throw_error(ErrorKind::kBadInput, path.string(), ": ", key, ": has no template named \"default\"; has ",
              names.empty() ? "none at all" : names);
}

std::optional<ChatTemplate> template_of_folder(const fs::path& folder) {
  const fs::path file = folder / "chat_template.jinja";
  if (fs::exists(file)) return ChatTemplate(read_file(file), file.string(), tokens_of_folder(folder));
  for (const char* name : {"tokenizer_config.json", "chat_template.json"}) {
    const fs::path json = folder / name;
    if (!fs::exists(json)) continue;
    if (const auto source = template_in(json)) {
      return ChatTemplate(*source, json.string() + ": chat_template", tokens_of_folder(folder));
    }
  }
  return std::nullopt;
}

std::optional<ChatTemplate> template_of_gguf(const GgufFile& file) {
  const std::string key = "tokenizer.chat_template";
  if (!file.has(key)) return std::nullopt;
  const Json config = tokenizer_config_of_gguf(file);
  Tokens tokens;
  for (const char* name : {"bos_token", "eos_token", "unk_token", "pad_token"}) {
    if (config.at(name).is_string()) tokens.emplace_back(name, config.at(name).get<std::string>());
  }
  return ChatTemplate(file.string(key), file.path().string() + ": " + key, std::move(tokens));
}

}  // namespace

struct ChatTemplate::Program {
  jinja::Block block;
};

ChatTemplate::ChatTemplate(std::string_view source, std::string where, Tokens tokens)
    : where_(std::move(where)), tokens_(std::move(tokens)) {
  if (source.size() > kMaxBytes) {
    throw_error(ErrorKind::kBadInput, where_, ": the template has ", source.size(), " bytes; at most ", kMaxBytes,
                " are expected");
  }
  if (!is_valid_utf8(source)) throw_error(ErrorKind::kBadInput, where_, ": the template is not UTF-8");
  try {
    program_ = std::make_unique<const Program>(Program{jinja::parse_template(source)});
  } catch (const jinja::TemplateError& error) {
    throw_template_error(where_, error);
  }
}

ChatTemplate::~ChatTemplate() = default;
ChatTemplate::ChatTemplate(ChatTemplate&&) noexcept = default;
ChatTemplate& ChatTemplate::operator=(ChatTemplate&&) noexcept = default;

std::string ChatTemplate::render(const std::vector<ChatMessage>& messages, bool add_generation_prompt) const {
  OrderedJson variables;
  variables["messages"] = OrderedJson::array();
  for (const ChatMessage& message : messages) {
    variables["messages"].push_back(
        {{"role", replace_invalid_utf8(message.role)}, {"content", replace_invalid_utf8(message.content)}});
  }
  variables["tools"] = nullptr;
  variables["documents"] = nullptr;
  variables["add_generation_prompt"] = add_generation_prompt;
  return render_with(variables);
}

std::string ChatTemplate::render_with(const OrderedJson& variables) const {
  jinja::Variables values;
  for (const auto& [name, token] : tokens_) values.emplace_back(name, jinja::Value(token));
  try {
    for (const auto& [name, value] : variables.items()) values.emplace_back(name, jinja::Value(value));
    return jinja::run_template(program_->block, values);
  } catch (const jinja::TemplateError& error) {
    throw_template_error(where_, error);
  }
}

std::optional<ChatTemplate> load_chat_template(const fs::path& checkpoint) {
  if (fs::is_directory(checkpoint)) return template_of_folder(checkpoint);
  if (!fs::exists(checkpoint)) {
    throw_error(ErrorKind::kMissingData, checkpoint.string(),
                ": does not exist; give the folder of a model or a .gguf file");
  }
  return template_of_gguf(GgufFile(checkpoint));
}

}  // namespace dynslice
