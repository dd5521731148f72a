#include "text/jinja/token_reader.h"

#include "text/jinja/value.h"

namespace dynslice::jinja {

TokenReader::Nesting::Nesting(TokenReader& reader) : reader_(reader) {
  if (++reader_.depth_ > kMaxNesting) {
    --reader_.depth_;
    fail(reader_.line(), "is nested more than ", kMaxNesting, " levels deep");
  }
}

const Token& TokenReader::next() {
  const Token& current = tokens_[at_];
  if (at_ + 1 < tokens_.size()) ++at_;
  return current;
}

bool TokenReader::skip(TokenKind kind, const char* text) {
  if (!is(kind, text)) return false;
  next();
  return true;
}

void TokenReader::expect(TokenKind kind, const char* text) {
  if (!skip(kind, text)) unexpected("\"" + std::string(text) + "\"");
}

void TokenReader::unexpected(const std::string& expected) const {
  const std::string found = is(TokenKind::kEndOfTemplate) ? "the end of the template"
                            : is(TokenKind::kText)        ? "text"
                                                          : "\"" + token().text + "\"";
  fail(line(), "expected ", expected, ", found ", found);
}

bool TokenReader::is_reserved(const std::string& word) {
  static constexpr const char* kWords[] = {"and",  "or",    "not",  "in",   "is",    "if",   "else",
                                           "true", "false", "none", "True", "False", "None", "elif"};
  return std::find(std::begin(kWords), std::end(kWords), word) != std::end(kWords);
}

}  // namespace dynslice::jinja
