#include "text/jinja/parser.h"

#include <algorithm>
#include <initializer_list>

#include "text/jinja/expressions.h"

namespace dynslice::jinja {
namespace {

// Statements; what stands in them is read by ExpressionParser.
class Parser : public ExpressionParser {
 public:
  explicit Parser(std::vector<Token> tokens) : ExpressionParser(std::move(tokens)) {}

  Block parse() {
    Block block = parse_block({});
    if (!is(TokenKind::kEndOfTemplate)) unexpected("the end of the template");
    return block;
  }

 private:
  // Up to a tag of one of these names, which is left to be read, or up to the end of the template.
  Block parse_block(std::initializer_list<const char*> ends) {
    const Nesting nesting(*this);
    Block block;
    while (!is(TokenKind::kEndOfTemplate)) {
      if (is(TokenKind::kText)) {
        block.push_back(make(Statement::Kind::kText));
        block.back().text = next().text;
      } else if (next_is_output()) {
        block.push_back(make(Statement::Kind::kOutput));
        next();
        block.back().value = parse_tuple();
        expect(TokenKind::kEnd, "}}");
      } else {
        const std::string& word = token_after(1).text;
        if (std::any_of(ends.begin(), ends.end(), [&](const char* end) { return word == end; })) return block;
        parse_statement(block);
      }
    }
    if (ends.size() > 0) fail(line(), "the template ends before {% ", *(ends.end() - 1), " %}");
    return block;
  }

  Statement make(Statement::Kind kind) const {
    Statement statement;
    statement.kind = kind;
    statement.line = line();
    return statement;
  }

  bool next_is_output() const { return is(TokenKind::kBegin, "{{"); }
  void end_tag() { expect(TokenKind::kEnd, "%}"); }
  void read_end(const char* word) {
    expect(TokenKind::kBegin, "{%");
    expect(TokenKind::kName, word);
    end_tag();
  }

  void parse_statement(Block& block) {
    expect(TokenKind::kBegin, "{%");
    if (!is(TokenKind::kName)) unexpected("the name of a tag");
    const std::string word = token().text;
    if (word == "if") {
      block.push_back(parse_if());
    } else if (word == "for") {
      block.push_back(parse_for());
    } else if (word == "set") {
      block.push_back(parse_set());
    } else if (word == "macro") {
      block.push_back(parse_macro());
    } else if (word == "generation") {
      block.push_back(make(Statement::Kind::kScope));
      next();
      end_tag();
      block.back().body = parse_block({"endgeneration"});
      read_end("endgeneration");
    } else if (word == "break" || word == "continue") {
      if (loops_ == 0) fail(line(), "{% ", word, " %} stands in no loop");
      block.push_back(make(word == "break" ? Statement::Kind::kBreak : Statement::Kind::kContinue));
      next();
      end_tag();
    } else {
      fail(line(), "the tag {% ", word,
           " %} is not supported here; supported are if, for, set, macro, generation, break, continue and raw");
    }
  }

  Statement parse_if() {
    Statement statement = make(Statement::Kind::kIf);
    bool more = true;
    while (more) {
      next();  // "if" or "elif"
      ExpressionPtr condition = parse_tuple();
      end_tag();
      statement.branches.push_back({std::move(condition), parse_block({"elif", "else", "endif"})});
      more = token_after(1).text == "elif";
      if (more) next();
    }
    if (token_after(1).text == "else") {
      read_end("else");
      statement.otherwise = parse_block({"endif"});
    }
    read_end("endif");
    return statement;
  }

  Statement parse_for() {
    Statement statement = make(Statement::Kind::kFor);
    next();
    statement.targets = parse_targets();
    expect(TokenKind::kName, "in");
    statement.value = parse_or();  // an "if" that follows belongs to the loop
    if (skip(TokenKind::kName, "if")) statement.condition = parse_expression();
    if (is(TokenKind::kName, "recursive")) fail(line(), "recursive loops are not supported");
    end_tag();
    ++loops_;
    statement.body = parse_block({"else", "endfor"});
    --loops_;
    if (token_after(1).text == "else") {
      read_end("else");
      statement.otherwise = parse_block({"endfor"});
    }
    read_end("endfor");
    return statement;
  }

  std::vector<std::string> parse_targets() {
    const bool in_brackets = skip(TokenKind::kOperator, "(");
    std::vector<std::string> targets;
    do targets.push_back(read_variable());
    while (skip(TokenKind::kOperator, ","));
    if (in_brackets) expect(TokenKind::kOperator, ")");
    return targets;
  }

  std::string read_variable() {
    if (!is(TokenKind::kName) || is_reserved(token().text)) unexpected("the name of a variable");
    return next().text;
  }

  Statement parse_set() {
    Statement statement = make(Statement::Kind::kSet);
    next();
    statement.targets = parse_targets();
    if (statement.targets.size() == 1 && skip(TokenKind::kOperator, ".")) {
      if (!is(TokenKind::kName)) unexpected("the name of an attribute");
      statement.text = next().text;
    }
    if (skip(TokenKind::kOperator, "=")) {
      statement.value = parse_tuple();
      end_tag();
      return statement;
    }
    if (is(TokenKind::kOperator, "|")) fail(line(), "{% set NAME | FILTER %} is not supported");
    if (statement.targets.size() > 1) unexpected("\"=\"");
    end_tag();
    statement.body = parse_block({"endset"});
    read_end("endset");
    return statement;
  }

  Statement parse_macro() {
    Statement statement = make(Statement::Kind::kMacro);
    next();
    statement.text = read_variable();
    expect(TokenKind::kOperator, "(");
    while (!skip(TokenKind::kOperator, ")")) {
      if (!statement.parameters.empty()) expect(TokenKind::kOperator, ",");
      if (statement.parameters.size() >= kMaxArguments) fail(line(), "more than ", kMaxArguments, " parameters");
      std::string name = read_variable();
      ExpressionPtr fallback = skip(TokenKind::kOperator, "=") ? parse_expression() : nullptr;
      statement.parameters.emplace_back(std::move(name), std::move(fallback));
    }
    end_tag();
    const int outer_loops = std::exchange(loops_, 0);
    statement.body = parse_block({"endmacro"});
    loops_ = outer_loops;
    read_end("endmacro");
    return statement;
  }

  int loops_ = 0;  // around the statement that is read
};

}  // namespace

Block parse_template(std::string_view source) { return Parser(cut_template(source)).parse(); }

}  // namespace dynslice::jinja
