// The grammar of expressions in chat templates: Jinja's, with its precedences.
#pragma once

#include <string>
#include <vector>

#include "text/jinja_lexer.h"
#include "text/jinja_parser.h"

namespace dynslice::jinja {

class ExpressionParser {
 protected:
  explicit ExpressionParser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  ExpressionPtr parse_expression();  // a conditional one
  ExpressionPtr parse_tuple();       // expressions with commas between them make a list
  ExpressionPtr parse_or();

  const Token& token() const { return tokens_[at_]; }
  const Token& token_after(size_t count) const { return tokens_[std::min(at_ + count, tokens_.size() - 1)]; }
  int line() const { return token().line; }
  const Token& next();
  bool is(TokenKind kind) const { return token().kind == kind; }
  bool is(TokenKind kind, const char* text) const { return is(kind) && token().text == text; }
  bool skip(TokenKind kind, const char* text);
  void expect(TokenKind kind, const char* text);
  [[noreturn]] void unexpected(const std::string& expected) const;
  static bool is_reserved(const std::string& word);

  // Counts how deep the parser has called itself. Throws TemplateError beyond what the stack holds.
  class Nesting {
   public:
    explicit Nesting(ExpressionParser& parser);
    ~Nesting() { --parser_.depth_; }
    Nesting(const Nesting&) = delete;
    Nesting& operator=(const Nesting&) = delete;

   private:
    ExpressionParser& parser_;
  };

 private:
  using Kind = Expression::Kind;
  ExpressionPtr make(Kind kind, int line, std::vector<ExpressionPtr> parts, std::string name = "") const;
  ExpressionPtr finish(std::unique_ptr<Expression> expression) const;
  ExpressionPtr literal(Value value, int at_line) const;
  template <typename Next>
  ExpressionPtr parse_left(std::initializer_list<const char*> operators, Next next_level);

  ExpressionPtr parse_and();
  ExpressionPtr parse_not();
  ExpressionPtr parse_compare();
  ExpressionPtr parse_sum();
  ExpressionPtr parse_concat();
  ExpressionPtr parse_product();
  ExpressionPtr parse_power();
  ExpressionPtr parse_unary(bool with_filters);
  ExpressionPtr parse_primary();
  ExpressionPtr parse_number();
  ExpressionPtr parse_brackets();
  ExpressionPtr parse_list(const char* close);
  ExpressionPtr parse_dict();
  ExpressionPtr parse_postfix(ExpressionPtr left);
  ExpressionPtr parse_filters(ExpressionPtr left);
  ExpressionPtr parse_subscript(ExpressionPtr left);
  ExpressionPtr parse_test(ExpressionPtr left);
  void parse_arguments(Expression& call);

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int depth_ = 0;
};

}  // namespace dynslice::jinja
