// The chat template that comes with a model: what turns messages into the text that the model was trained on.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dynslice/support/json.h"

namespace dynslice {

struct ChatMessage {
  std::string role;  // "system", "user", "assistant"
  std::string content;
};

// A template in the part of Jinja's language that chat templates use, run as transformers runs it: trim_blocks,
// lstrip_blocks, values that do not change, tojson without escapes for HTML, raise_exception and strftime_now.
//
// Known are if, for, set, macro, generation, break, continue and raw; the filters, tests and methods that
// src/text/jinja/{filters,tests,methods}.cpp list. What is not known is an error, never left out.
// A template is not trusted: its size, nesting, work and output are limited.
class ChatTemplate {
 public:
  // `where` names it in messages; `tokens` are variables beside the messages, such as bos_token. Throws kBadInput
  // with the line that cannot be read.
  ChatTemplate(std::string_view source, std::string where,
               std::vector<std::pair<std::string, std::string>> tokens = {});
  ~ChatTemplate();
  ChatTemplate(ChatTemplate&&) noexcept;
  ChatTemplate& operator=(ChatTemplate&&) noexcept;

  // The text of a conversation; with `add_generation_prompt` it ends where the assistant's answer begins. Throws
  // kBadInput when the template refuses the messages or cannot be run.
  [[nodiscard]] std::string render(const std::vector<ChatMessage>& messages, bool add_generation_prompt = true) const;

  // The same with all variables given as an object; `tokens` count where it does not have them.
  [[nodiscard]] std::string render_with(const OrderedJson& variables) const;

 private:
  struct Program;
  std::unique_ptr<const Program> program_;
  std::string where_;
  std::vector<std::pair<std::string, std::string>> tokens_;
};

// The template of a checkpoint with its bos_token, eos_token, unk_token and pad_token. Of a folder:
// chat_template.jinja, else "chat_template" of tokenizer_config.json (a string, or a list of which the one named
// "default" is taken), else of chat_template.json; of a GGUF file: tokenizer.chat_template. Nothing when there is none.
// Throws kBadInput for one that cannot be used, kMissingData when there is no checkpoint.
[[nodiscard]] std::optional<ChatTemplate> load_chat_template(const std::filesystem::path& checkpoint);

}  // namespace dynslice
