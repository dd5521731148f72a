// The grammar of expressions in chat templates: Jinja's, with its precedences.
#pragma once

#include <string>
#include <vector>

#include "text/jinja/parser.h"
#include "text/jinja/token_reader.h"

namespace dynslice::jinja {

class ExpressionParser : protected TokenReader {
 protected:
  explicit ExpressionParser(std::vector<Token> tokens) : TokenReader(std::move(tokens)) {}

  ExpressionPtr parse_expression();  // a conditional one
  ExpressionPtr parse_tuple();       // expressions with commas between them make a list
  ExpressionPtr parse_or();

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
};

}  // namespace dynslice::jinja
