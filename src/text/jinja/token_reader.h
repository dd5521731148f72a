// Goes through the tokens of a template, one after the other; what both parts of the parser stand on.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "text/jinja/lexer.h"

namespace dynslice::jinja {

// No part of a template is nested deeper, so that neither parser nor evaluator needs more of the stack than there is.
constexpr int kMaxNesting = 100;

// Nor has a call more arguments, or a macro more parameters: they are looked up by going through all.
constexpr size_t kMaxArguments = 255;

class TokenReader {
 protected:
  // The last token is kEndOfTemplate, which is never left behind.
  explicit TokenReader(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  const Token& token() const { return tokens_[at_]; }
  const Token& token_after(size_t count) const { return tokens_[std::min(at_ + count, tokens_.size() - 1)]; }
  int line() const { return token().line; }
  const Token& next();
  bool is(TokenKind kind) const { return token().kind == kind; }
  bool is(TokenKind kind, const char* text) const { return is(kind) && token().text == text; }
  bool skip(TokenKind kind, const char* text);
  void expect(TokenKind kind, const char* text);
  [[noreturn]] void unexpected(const std::string& expected) const;
  // Whether a word has a meaning of its own and names no variable.
  static bool is_reserved(const std::string& word);

  // Counts how deep the parser has called itself. Throws TemplateError beyond kMaxNesting.
  class Nesting {
   public:
    explicit Nesting(TokenReader& reader);
    ~Nesting() { --reader_.depth_; }
    Nesting(const Nesting&) = delete;
    Nesting& operator=(const Nesting&) = delete;

   private:
    TokenReader& reader_;
  };

 private:
  std::vector<Token> tokens_;
  size_t at_ = 0;
  int depth_ = 0;
};

}  // namespace dynslice::jinja
