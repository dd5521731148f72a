#include "text/jinja/evaluator.h"

#include <algorithm>
#include <list>

#include "text/jinja/functions.h"

namespace dynslice::jinja {
namespace {

using Values = std::vector<Value>;

// Variables of a block; those of the blocks around it are seen through it and not changed.
struct Scope {
  const Scope* outer = nullptr;
  std::map<std::string, Value> values;

  const Value* find(const std::string& name) const {
    for (const Scope* scope = this; scope != nullptr; scope = scope->outer) {
      const auto found = scope->values.find(name);
      if (found != scope->values.end()) return &found->second;
    }
    return nullptr;
  }
};

enum class Flow { kOn, kBreak, kContinue };

class Evaluator {
 public:
  Evaluator(const Block& program, const Variables& variables) : program_(program) {
    add_function("range", [this](const Arguments& arguments) { return range_of(arguments, budget_); });
    add_function("strftime_now", time_now);
    add_function("raise_exception",
                 [this](const Arguments& arguments) -> Value { raise_exception(arguments, budget_); });
    add_function("namespace", [this](const Arguments& arguments) {
      Namespace& space = spaces_.emplace_back();
      arguments_to(arguments, "namespace",
                   [&](const std::string& name, const Value& value) { space.values[name] = value; });
      return Value(&space);
    });
    add_function("dict", [this](const Arguments& arguments) {
      std::vector<std::pair<Value, Value>> items;
      arguments_to(arguments, "dict",
                   [&](const std::string& name, const Value& value) { items.emplace_back(Value(name), value); });
      return dict_of(std::move(items));
    });
    for (const auto& [name, value] : variables) globals_.values[name] = value;
    root_.outer = &globals_;
  }

  std::string run() {
    try {
      std::string out;
      run_block(program_, root_, out);
      return out;
    } catch (const TemplateError& error) {
      throw TemplateError(error.line() > 0 ? error.line() : line_, error.what());
    }
  }

 private:
  // Counts how deep the evaluator has called itself, through expressions, blocks and macros.
  class Nesting {
   public:
    explicit Nesting(int& depth) : depth_(depth) {
      constexpr int kMaxDepth = 400;
      if (depth >= kMaxDepth) fail(0, "calls itself, or is nested, too deep");
      ++depth;
    }
    ~Nesting() { --depth_; }
    Nesting(const Nesting&) = delete;
    Nesting& operator=(const Nesting&) = delete;

   private:
    int& depth_;
  };

  template <typename Function>
  void add_function(const char* name, Function call) {
    globals_.values[name] = Value(Callable{name, std::move(call)});
  }

  template <typename Add>
  void arguments_to(const Arguments& arguments, const char* function, Add add) {
    if (!arguments.positional.empty()) fail(0, function, " takes arguments with names only");
    for (const auto& [name, value] : arguments.named) add(name, value);
  }

  void write(std::string& out, const std::string& text) {
    budget_.spend(text.size());
    out += text;
  }

  // ---- Statements ----

  Flow run_block(const Block& block, Scope& scope, std::string& out) {
    const Nesting nesting(depth_);
    for (const Statement& statement : block) {
      budget_.spend(Budget::kStep);
      line_ = statement.line;
      const Flow flow = run_statement(statement, scope, out);
      if (flow != Flow::kOn) return flow;
    }
    return Flow::kOn;
  }

  Flow run_statement(const Statement& statement, Scope& scope, std::string& out) {
    switch (statement.kind) {
      case Statement::Kind::kText:
        write(out, statement.text);
        return Flow::kOn;
      case Statement::Kind::kOutput:
        write(out, evaluate(*statement.value, scope).text(budget_));
        return Flow::kOn;
      case Statement::Kind::kIf:
        for (const Statement::Branch& branch : statement.branches) {
          if (evaluate(*branch.condition, scope).truth()) return run_block(branch.body, scope, out);
        }
        return run_block(statement.otherwise, scope, out);
      case Statement::Kind::kFor:
        return run_for(statement, scope, out);
      case Statement::Kind::kSet:
        run_set(statement, scope);
        return Flow::kOn;
      case Statement::Kind::kMacro:
        scope.values[statement.text] = macro(statement);
        return Flow::kOn;
      case Statement::Kind::kScope: {
        Scope inner{&scope, {}};
        return run_block(statement.body, inner, out);
      }
      case Statement::Kind::kBreak:
        return Flow::kBreak;
      case Statement::Kind::kContinue:
        return Flow::kContinue;
    }
    return Flow::kOn;
  }

  void assign(const std::vector<std::string>& targets, const Value& value, Scope& scope) {
    if (targets.size() == 1) {
      scope.values[targets.front()] = value;
      return;
    }
    const Values items = iterate(value, budget_);
    if (items.size() != targets.size()) {
      fail(0, items.size(), " values cannot be given to ", targets.size(), " variables");
    }
    for (size_t i = 0; i < items.size(); ++i) scope.values[targets[i]] = items[i];
  }

  void run_set(const Statement& statement, Scope& scope) {
    Value value;
    if (statement.value) {
      value = evaluate(*statement.value, scope);
    } else {
      Scope inner{&scope, {}};
      std::string text;
      run_block(statement.body, inner, text);
      value = Value(std::move(text));
    }
    if (statement.text.empty()) {
      assign(statement.targets, value, scope);
      return;
    }
    const std::string& name = statement.targets.front();
    const Value* space = scope.find(name);
    if (space == nullptr || space->space() == nullptr) fail(statement.line, "\"", name, "\" is no namespace");
    space->space()->values[statement.text] = value;
  }

  Flow run_for(const Statement& statement, Scope& scope, std::string& out) {
    Values items = iterate(evaluate(*statement.value, scope), budget_);
    if (statement.condition) {
      Values chosen;
      for (const Value& item : items) {
        Scope inner{&scope, {}};
        assign(statement.targets, item, inner);
        if (evaluate(*statement.condition, inner).truth()) chosen.push_back(item);
      }
      items = std::move(chosen);
    }
    for (size_t i = 0; i < items.size(); ++i) {
      Scope inner{&scope, {}};
      inner.values["loop"] = loop_of(items, i);
      assign(statement.targets, items[i], inner);
      if (run_block(statement.body, inner, out) == Flow::kBreak) break;
    }
    if (!items.empty()) return Flow::kOn;
    Scope inner{&scope, {}};
    return run_block(statement.otherwise, inner, out);
  }

  Value loop_of(const Values& items, size_t place) {
    budget_.spend(20 * Budget::kStep);
    const auto index = static_cast<int64_t>(place), size = static_cast<int64_t>(items.size());
    const Value none(Undefined{"there is no such item of the loop"});
    const Value cycle(Callable{"cycle", [index](const Arguments& arguments) {
                                 if (arguments.positional.empty()) fail(0, "loop.cycle has nothing to choose from");
                                 return arguments.positional[static_cast<size_t>(index) % arguments.positional.size()];
                               }});
    return Value(std::vector<std::pair<Value, Value>>{{Value("index0"), Value(index)},
                                                      {Value("index"), Value(index + 1)},
                                                      {Value("revindex0"), Value(size - index - 1)},
                                                      {Value("revindex"), Value(size - index)},
                                                      {Value("first"), Value(place == 0)},
                                                      {Value("last"), Value(index + 1 == size)},
                                                      {Value("length"), Value(size)},
                                                      {Value("previtem"), place > 0 ? items[place - 1] : none},
                                                      {Value("nextitem"), index + 1 < size ? items[place + 1] : none},
                                                      {Value("cycle"), cycle}});
  }

  Value macro(const Statement& statement) {
    return Value(Callable{statement.text, [this, &statement](const Arguments& arguments) {
                            std::vector<std::string> names;
                            for (const auto& [name, fallback] : statement.parameters) names.push_back(name);
                            const Values bound = arguments.bind(statement.text, names, 0);
                            Scope scope{&root_, {}};
                            for (size_t i = 0; i < names.size(); ++i) {
                              const ExpressionPtr& fallback = statement.parameters[i].second;
                              scope.values[names[i]] =
                                  bound[i].is_undefined() && fallback ? evaluate(*fallback, scope) : bound[i];
                            }
                            std::string out;
                            run_block(statement.body, scope, out);
                            return Value(std::move(out));
                          }});
  }

  // ---- Expressions ----

  Value evaluate(const Expression& expression, const Scope& scope) {
    using Kind = Expression::Kind;
    const Nesting nesting(depth_);
    budget_.spend(Budget::kStep);
    line_ = expression.line;
    const auto part = [&](size_t i) { return evaluate(*expression.parts[i], scope); };
    switch (expression.kind) {
      case Kind::kLiteral:
        return expression.value;
      case Kind::kName: {
        budget_.spend(expression.name.size());
        const Value* value = scope.find(expression.name);
        return value != nullptr ? *value : Value(Undefined{"'" + expression.name + "' is undefined"});
      }
      case Kind::kList:
        return Value(parts_from(expression, 0, scope));
      case Kind::kDict:
        return evaluate_dict(expression, scope);
      case Kind::kAttribute:
        return attribute_of(part(0), expression.name, budget_);
      case Kind::kSubscript: {
        const Value object = part(0);
        return item_of(object, part(1), budget_);
      }
      case Kind::kSlice: {
        const auto bound = [&](size_t i) { return expression.parts[i] ? part(i) : Value(); };
        const Value object = part(0), begin = bound(1), end = bound(2);
        return slice_of(object, begin, end, bound(3), budget_);
      }
      case Kind::kCall:
        return evaluate_call(expression, scope);
      case Kind::kFilter: {
        const Value input = part(0);
        return apply_filter(expression.name, input, arguments_of(expression, scope), budget_);
      }
      case Kind::kTest: {
        const Value input = part(0);
        return Value(apply_test(expression.name, input, arguments_of(expression, scope), budget_));
      }
      case Kind::kNot:
        return Value(!part(0).truth());
      case Kind::kNegative:
        return apply_operator("-", Value(int64_t{0}), part(0), budget_);
      case Kind::kPositive:
        return apply_operator("+", Value(int64_t{0}), part(0), budget_);
      case Kind::kAnd: {
        Value left = part(0);
        return left.truth() ? part(1) : left;
      }
      case Kind::kOr: {
        Value left = part(0);
        return left.truth() ? left : part(1);
      }
      case Kind::kBinary: {
        const Value left = part(0);
        return apply_operator(expression.name, left, part(1), budget_);
      }
      case Kind::kConcat: {
        std::string text;
        for (const Value& value : parts_from(expression, 0, scope)) write(text, value.text(budget_));
        return Value(std::move(text));
      }
      case Kind::kCompare:
        return Value(evaluate_compare(expression, scope));
      case Kind::kConditional:
        if (part(1).truth()) return part(0);
        return expression.parts[2] ? part(2) : Value(Undefined{"the value of an 'if' without 'else' is undefined"});
    }
    return Value();
  }

  Values parts_from(const Expression& expression, size_t first, const Scope& scope) {
    Values values;
    for (size_t i = first; i < expression.parts.size(); ++i) values.push_back(evaluate(*expression.parts[i], scope));
    return values;
  }

  Value evaluate_dict(const Expression& expression, const Scope& scope) {
    const Values values = parts_from(expression, 0, scope);
    std::vector<std::pair<Value, Value>> items;
    for (size_t i = 0; i + 1 < values.size(); i += 2) {
      if (values[i].string() == nullptr && !values[i].is_number()) {
        fail(expression.line, "a key of a dict is a string or a number, not ", values[i].type_name());
      }
      const size_t key = values[i].string() != nullptr ? values[i].string()->size() : 0;
      budget_.spend((Budget::kStep + key) * items.size());
      items.emplace_back(values[i], values[i + 1]);
    }
    return dict_of(std::move(items));
  }

  Arguments arguments_of(const Expression& expression, const Scope& scope) {
    Arguments arguments{parts_from(expression, 1, scope), {}};
    for (const auto& [name, value] : expression.named) arguments.named.emplace_back(name, evaluate(*value, scope));
    return arguments;
  }

  Value evaluate_call(const Expression& expression, const Scope& scope) {
    const Value function = evaluate(*expression.parts[0], scope);
    if (function.is_undefined()) fail(expression.line, function.undefined().what);
    if (function.callable() == nullptr) fail(expression.line, function.type_name(), " is no function");
    const Arguments arguments = arguments_of(expression, scope);
    line_ = expression.line;
    return function.callable()->call(arguments);
  }

  bool evaluate_compare(const Expression& expression, const Scope& scope) {
    Value left = evaluate(*expression.parts[0], scope);
    for (size_t i = 0; i < expression.operators.size(); ++i) {
      const Value right = evaluate(*expression.parts[i + 1], scope);
      if (!compare(expression.operators[i], left, right)) return false;
      left = right;
    }
    return true;
  }

  bool compare(const std::string& sign, const Value& left, const Value& right) {
    if (sign == "==") return equal(left, right, budget_);
    if (sign == "!=") return !equal(left, right, budget_);
    if (sign == "in") return contains(right, left, budget_);
    if (sign == "not in") return !contains(right, left, budget_);
    if (sign == "<") return less(left, right, budget_);
    if (sign == ">") return less(right, left, budget_);
    return sign == "<=" ? !less(right, left, budget_) : !less(left, right, budget_);
  }

  const Block& program_;
  Budget budget_;
  std::list<Namespace> spaces_;
  Scope globals_, root_;
  int depth_ = 0;
  int line_ = 0;
};

}  // namespace

std::string run_template(const Block& program, const Variables& variables) {
  return Evaluator(program, variables).run();
}

}  // namespace dynslice::jinja
