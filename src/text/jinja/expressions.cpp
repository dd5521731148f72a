#include "text/jinja/expressions.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>

namespace dynslice::jinja {
namespace {

template <typename... Parts>
std::vector<ExpressionPtr> parts_of(Parts... parts) {
  std::vector<ExpressionPtr> list;
  (list.push_back(std::move(parts)), ...);
  return list;
}

}  // namespace

ExpressionPtr ExpressionParser::finish(std::unique_ptr<Expression> expression) const {
  for (const ExpressionPtr& part : expression->parts) {
    if (part) expression->depth = std::max(expression->depth, part->depth + 1);
  }
  for (const auto& [name, part] : expression->named) expression->depth = std::max(expression->depth, part->depth + 1);
  if (expression->depth > kMaxNesting)
    fail(expression->line, "has an expression of more than ", kMaxNesting, " levels");
  return expression;
}

ExpressionPtr ExpressionParser::make(Kind kind, int line, std::vector<ExpressionPtr> parts, std::string name) const {
  auto expression = std::make_unique<Expression>();
  expression->kind = kind;
  expression->line = line;
  expression->name = std::move(name);
  expression->parts = std::move(parts);
  return finish(std::move(expression));
}

ExpressionPtr ExpressionParser::literal(Value value, int at_line) const {
  auto expression = std::make_unique<Expression>();
  expression->kind = Kind::kLiteral;
  expression->line = at_line;
  expression->value = std::move(value);
  return expression;
}

ExpressionPtr ExpressionParser::parse_tuple() {
  const int begin = line();
  ExpressionPtr first = parse_expression();
  if (!is(TokenKind::kOperator, ",")) return first;
  std::vector<ExpressionPtr> items = parts_of(std::move(first));
  while (skip(TokenKind::kOperator, ",")) {
    if (is(TokenKind::kEnd) || is(TokenKind::kOperator, ")")) break;
    items.push_back(parse_expression());
  }
  return make(Kind::kList, begin, std::move(items));
}

ExpressionPtr ExpressionParser::parse_expression() {
  const Nesting nesting(*this);
  ExpressionPtr value = parse_or();
  while (is(TokenKind::kName, "if")) {
    const int begin = next().line;
    ExpressionPtr condition = parse_or();
    ExpressionPtr otherwise = skip(TokenKind::kName, "else") ? parse_expression() : nullptr;
    value = make(Kind::kConditional, begin, parts_of(std::move(value), std::move(condition), std::move(otherwise)));
  }
  return value;
}

ExpressionPtr ExpressionParser::parse_or() {
  ExpressionPtr left = parse_and();
  while (is(TokenKind::kName, "or")) {
    const int begin = next().line;
    ExpressionPtr right = parse_and();
    left = make(Kind::kOr, begin, parts_of(std::move(left), std::move(right)));
  }
  return left;
}

ExpressionPtr ExpressionParser::parse_and() {
  ExpressionPtr left = parse_not();
  while (is(TokenKind::kName, "and")) {
    const int begin = next().line;
    ExpressionPtr right = parse_not();
    left = make(Kind::kAnd, begin, parts_of(std::move(left), std::move(right)));
  }
  return left;
}

ExpressionPtr ExpressionParser::parse_not() {
  if (!is(TokenKind::kName, "not")) return parse_compare();
  const Nesting nesting(*this);
  const int begin = next().line;
  return make(Kind::kNot, begin, parts_of(parse_not()));
}

ExpressionPtr ExpressionParser::parse_compare() {
  auto compare = std::make_unique<Expression>();
  compare->kind = Kind::kCompare;
  compare->line = line();
  compare->parts.push_back(parse_sum());
  while (true) {
    static constexpr const char* kSigns[] = {"==", "!=", "<", "<=", ">", ">="};
    const auto sign =
        std::find_if(std::begin(kSigns), std::end(kSigns), [&](const char* s) { return is(TokenKind::kOperator, s); });
    if (sign != std::end(kSigns)) {
      compare->operators.push_back(next().text);
    } else if (is(TokenKind::kName, "in")) {
      compare->operators.push_back(next().text);
    } else if (is(TokenKind::kName, "not") && token_after(1).text == "in") {
      next();
      next();
      compare->operators.push_back("not in");
    } else {
      break;
    }
    compare->parts.push_back(parse_sum());
  }
  if (compare->operators.empty()) return std::move(compare->parts.front());
  return finish(std::move(compare));
}

template <typename Next>
ExpressionPtr ExpressionParser::parse_left(std::initializer_list<const char*> operators, Next next_level) {
  ExpressionPtr left = next_level();
  const auto here = [&] {
    return std::any_of(operators.begin(), operators.end(), [&](const char* s) { return is(TokenKind::kOperator, s); });
  };
  while (here()) {
    const Token& sign = next();
    ExpressionPtr right = next_level();
    left = make(Kind::kBinary, sign.line, parts_of(std::move(left), std::move(right)), sign.text);
  }
  return left;
}

ExpressionPtr ExpressionParser::parse_sum() {
  return parse_left({"+", "-"}, [&] { return parse_concat(); });
}

ExpressionPtr ExpressionParser::parse_concat() {
  const int begin = line();
  ExpressionPtr first = parse_product();
  if (!is(TokenKind::kOperator, "~")) return first;
  std::vector<ExpressionPtr> parts = parts_of(std::move(first));
  while (skip(TokenKind::kOperator, "~")) parts.push_back(parse_product());
  return make(Kind::kConcat, begin, std::move(parts));
}

ExpressionPtr ExpressionParser::parse_product() {
  return parse_left({"*", "/", "//", "%"}, [&] { return parse_power(); });
}

ExpressionPtr ExpressionParser::parse_power() {
  return parse_left({"**"}, [&] { return parse_unary(true); });
}

ExpressionPtr ExpressionParser::parse_unary(bool with_filters) {
  ExpressionPtr value;
  const int begin = line();
  if (is(TokenKind::kOperator, "-") || is(TokenKind::kOperator, "+")) {
    const Nesting nesting(*this);
    const Kind kind = next().text == "-" ? Kind::kNegative : Kind::kPositive;
    value = make(kind, begin, parts_of(parse_unary(false)));
  } else {
    value = parse_primary();
  }
  value = parse_postfix(std::move(value));
  return with_filters ? parse_filters(std::move(value)) : std::move(value);
}

ExpressionPtr ExpressionParser::parse_primary() {
  switch (token().kind) {
    case TokenKind::kName: {
      const std::string& word = token().text;
      if (word == "true" || word == "True" || word == "false" || word == "False") {
        const Token& truth = next();
        return literal(Value(truth.text == "true" || truth.text == "True"), truth.line);
      }
      if (word == "none" || word == "None") {
        return literal(Value(), next().line);
      }
      if (is_reserved(word)) unexpected("a value");
      const Token& name = next();
      return make(Kind::kName, name.line, {}, name.text);
    }
    case TokenKind::kString: {
      const int begin = line();
      std::string text;
      while (is(TokenKind::kString)) text += next().text;  // as in Python, strings side by side are one
      return literal(Value(std::move(text)), begin);
    }
    case TokenKind::kInteger:
    case TokenKind::kFloat:
      return parse_number();
    case TokenKind::kOperator:
      return parse_brackets();
    default:
      unexpected("a value");
  }
}

ExpressionPtr ExpressionParser::parse_number() {
  const Token& number = next();
  if (number.kind == TokenKind::kFloat) return literal(Value(std::strtod(number.text.c_str(), nullptr)), number.line);
  int64_t value = 0;
  const char* end = number.text.data() + number.text.size();
  if (std::from_chars(number.text.data(), end, value).ec != std::errc()) {
    fail(number.line, "the number ", number.text, " is too large");
  }
  return literal(Value(value), number.line);
}

ExpressionPtr ExpressionParser::parse_brackets() {
  const Nesting nesting(*this);
  const int begin = line();
  if (skip(TokenKind::kOperator, "[")) return parse_list("]");
  if (skip(TokenKind::kOperator, "{")) return parse_dict();
  if (!skip(TokenKind::kOperator, "(")) unexpected("a value");
  if (skip(TokenKind::kOperator, ")")) return make(Kind::kList, begin, {});
  ExpressionPtr value = parse_tuple();
  expect(TokenKind::kOperator, ")");
  return value;
}

ExpressionPtr ExpressionParser::parse_list(const char* close) {
  const int begin = line();
  std::vector<ExpressionPtr> items;
  while (!skip(TokenKind::kOperator, close)) {
    if (!items.empty()) expect(TokenKind::kOperator, ",");
    if (skip(TokenKind::kOperator, close)) break;
    items.push_back(parse_expression());
  }
  return make(Kind::kList, begin, std::move(items));
}

ExpressionPtr ExpressionParser::parse_dict() {
  const int begin = line();
  std::vector<ExpressionPtr> items;
  while (!skip(TokenKind::kOperator, "}")) {
    if (!items.empty()) expect(TokenKind::kOperator, ",");
    if (skip(TokenKind::kOperator, "}")) break;
    items.push_back(parse_expression());
    expect(TokenKind::kOperator, ":");
    items.push_back(parse_expression());
  }
  return make(Kind::kDict, begin, std::move(items));
}

ExpressionPtr ExpressionParser::parse_postfix(ExpressionPtr left) {
  while (true) {
    const int begin = line();
    if (skip(TokenKind::kOperator, ".")) {
      if (!is(TokenKind::kName) && !is(TokenKind::kInteger)) unexpected("the name of an attribute");
      if (is(TokenKind::kInteger)) {
        left = make(Kind::kSubscript, begin, parts_of(std::move(left), parse_number()));
      } else {
        left = make(Kind::kAttribute, begin, parts_of(std::move(left)), next().text);
      }
    } else if (skip(TokenKind::kOperator, "[")) {
      left = parse_subscript(std::move(left));
    } else if (is(TokenKind::kOperator, "(")) {
      auto call = std::make_unique<Expression>();
      call->kind = Kind::kCall;
      call->line = begin;
      call->parts.push_back(std::move(left));
      parse_arguments(*call);
      left = finish(std::move(call));
    } else {
      return left;
    }
  }
}

ExpressionPtr ExpressionParser::parse_subscript(ExpressionPtr left) {
  const int begin = line();
  const Nesting nesting(*this);
  const auto at_end = [&] { return is(TokenKind::kOperator, ":") || is(TokenKind::kOperator, "]"); };
  ExpressionPtr first = at_end() ? nullptr : parse_expression();
  if (first && skip(TokenKind::kOperator, "]")) {
    return make(Kind::kSubscript, begin, parts_of(std::move(left), std::move(first)));
  }
  expect(TokenKind::kOperator, ":");
  ExpressionPtr second = at_end() ? nullptr : parse_expression();
  ExpressionPtr third;
  if (skip(TokenKind::kOperator, ":") && !at_end()) third = parse_expression();
  expect(TokenKind::kOperator, "]");
  return make(Kind::kSlice, begin, parts_of(std::move(left), std::move(first), std::move(second), std::move(third)));
}

void ExpressionParser::parse_arguments(Expression& call) {
  const Nesting nesting(*this);
  expect(TokenKind::kOperator, "(");
  bool first = true;
  while (!skip(TokenKind::kOperator, ")")) {
    if (!first) expect(TokenKind::kOperator, ",");
    if (!first && skip(TokenKind::kOperator, ")")) return;
    first = false;
    if (call.parts.size() + call.named.size() > kMaxArguments) fail(line(), "more than ", kMaxArguments, " arguments");
    if (is(TokenKind::kName) && token_after(1).kind == TokenKind::kOperator && token_after(1).text == "=") {
      std::string name = next().text;
      next();
      call.named.emplace_back(std::move(name), parse_expression());
    } else {
      if (!call.named.empty()) fail(line(), "an argument without a name follows one with a name");
      call.parts.push_back(parse_expression());
    }
  }
}

ExpressionPtr ExpressionParser::parse_filters(ExpressionPtr left) {
  while (true) {
    const bool filters = is(TokenKind::kOperator, "|");
    if (!filters && !is(TokenKind::kName, "is")) {
      // What a filter gives may be called, which templates have no use for.
      return left;
    }
    const int begin = next().line;
    if (!filters) {
      left = parse_test(std::move(left));
      continue;
    }
    if (!is(TokenKind::kName)) unexpected("the name of a filter");
    auto filter = std::make_unique<Expression>();
    filter->kind = Kind::kFilter;
    filter->line = begin;
    filter->name = next().text;
    filter->parts.push_back(std::move(left));
    if (is(TokenKind::kOperator, "(")) parse_arguments(*filter);
    left = finish(std::move(filter));
  }
}

ExpressionPtr ExpressionParser::parse_test(ExpressionPtr left) {
  auto test = std::make_unique<Expression>();
  test->kind = Kind::kTest;
  test->line = line();
  const bool negated = skip(TokenKind::kName, "not");
  if (!is(TokenKind::kName)) unexpected("the name of a test");
  test->name = next().text;
  test->parts.push_back(std::move(left));
  const bool has_value = is(TokenKind::kString) || is(TokenKind::kInteger) || is(TokenKind::kFloat) ||
                         is(TokenKind::kOperator, "[") || is(TokenKind::kOperator, "{") ||
                         (is(TokenKind::kName) && (!is_reserved(token().text) || token().text == "true" ||
                                                   token().text == "false" || token().text == "none"));
  if (is(TokenKind::kOperator, "(")) {
    parse_arguments(*test);
  } else if (has_value) {  // "x is divisibleby 3"
    test->parts.push_back(parse_postfix(parse_primary()));
  }
  const int begin = test->line;
  ExpressionPtr result = finish(std::move(test));
  return negated ? make(Kind::kNot, begin, parts_of(std::move(result))) : std::move(result);
}

}  // namespace dynslice::jinja
