// A chat template cut into tokens, with white space around tags taken away as jinja2 does it with trim_blocks and
// lstrip_blocks, which is how transformers runs these templates.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace dynslice::jinja {

enum class TokenKind {
  kText,   // between tags
  kBegin,  // "{%" or "{{": `text` says which
  kEnd,    // "%}" or "}}"
  kName,
  kString,  // escapes resolved
  kInteger,
  kFloat,
  kOperator,
  kEndOfTemplate,
};

struct Token {
  TokenKind kind;
  std::string text;
  int line;
};

// `source` is valid UTF-8. Throws TemplateError. The last token is kEndOfTemplate.
std::vector<Token> cut_template(std::string_view source);

}  // namespace dynslice::jinja
