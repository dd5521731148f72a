// The syntax tree of a chat template: the part of Jinja's language that such templates use.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/jinja/value.h"

namespace dynslice::jinja {

struct Expression;
using ExpressionPtr = std::unique_ptr<const Expression>;

struct Expression {
  enum class Kind {
    kLiteral,    // value
    kName,       // name
    kList,       // parts
    kDict,       // parts: key, value, key, value ...
    kAttribute,  // parts[0].name
    kSubscript,  // parts[0][parts[1]]
    kSlice,      // parts[0][parts[1]:parts[2]:parts[3]], each but the first may be null
    kCall,       // parts[0](parts[1...], named)
    kFilter,     // parts[0] | name(parts[1...], named)
    kTest,       // parts[0] is name(parts[1...]); the negation is kNot
    kNot,
    kNegative,
    kPositive,
    kAnd,
    kOr,
    kBinary,       // name: + - * / // % **
    kConcat,       // parts[0] ~ parts[1] ~ ...
    kCompare,      // parts[0] operators[0] parts[1] operators[1] parts[2] ...
    kConditional,  // parts[0] if parts[1] else parts[2], the last may be null
  };
  Kind kind;
  int line = 0;
  std::string name;
  Value value;
  std::vector<ExpressionPtr> parts;
  std::vector<std::pair<std::string, ExpressionPtr>> named;
  std::vector<std::string> operators;
  int depth = 1;  // levels of the tree below and with this one
};

struct Statement;
using Block = std::vector<Statement>;

struct Statement {
  enum class Kind {
    kText,    // text
    kOutput,  // value
    kIf,      // branches, and otherwise
    kFor,     // targets, value, condition; body, otherwise
    kSet,     // targets, or the attribute text of targets[0]; value, or body
    kMacro,   // text (its name), parameters, body
    kScope,   // body, whose variables stay inside
    kBreak,
    kContinue,
  };
  struct Branch;

  Kind kind;
  int line = 0;
  std::string text;
  std::vector<std::string> targets;
  ExpressionPtr value;
  ExpressionPtr condition;
  std::vector<Branch> branches;
  std::vector<std::pair<std::string, ExpressionPtr>> parameters;  // with their defaults, null for none
  Block body;
  Block otherwise;
};

struct Statement::Branch {
  ExpressionPtr condition;
  Block body;
};

// `source` is valid UTF-8. Throws TemplateError with the line of what cannot be read or is not supported.
Block parse_template(std::string_view source);

}  // namespace dynslice::jinja
