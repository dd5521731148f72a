// Values of chat templates, which behave as Python's do, and the work that a template may make.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "dynslice/support/error.h"
#include "dynslice/support/json.h"

namespace dynslice::jinja {

// What is wrong with a template, or with what it is given; `line` of the template, 0 while it is not known.
class TemplateError : public std::runtime_error {
 public:
  TemplateError(int line, const std::string& message) : std::runtime_error(message), line_(line) {}
  int line() const { return line_; }

 private:
  int line_;
};

template <typename... Parts>
[[noreturn]] void fail(int line, const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw TemplateError(line, message.str());
}

// Templates come from files that nobody vouches for: all that they do is counted, in bytes touched or steps taken.
class Budget {
 public:
  static constexpr int64_t kWork = int64_t{1} << 27;
  static constexpr int64_t kStep = 16;
  void spend(size_t amount) {
    if (amount > static_cast<size_t>(left_)) fail(0, "takes too much time or memory");
    left_ -= static_cast<int64_t>(amount);
  }

 private:
  int64_t left_ = kWork;
};

class Value;
struct Arguments;
struct Callable;
struct Namespace;

struct Undefined {
  std::string what;  // "'name' is undefined"
};
struct None {};

// Lists (and tuples) and dicts never change once they are made, so that none can hold itself. `depth` counts levels.
struct List {
  std::vector<Value> items;
  int depth = 1;
};
struct Dict {
  std::vector<std::pair<Value, Value>> items;  // in the order of insertion
  int depth = 1;
  const Value* find(const Value& key, Budget& budget) const;
};

class Value {
 public:
  using Variant = std::variant<Undefined, None, bool, int64_t, double, std::shared_ptr<const std::string>,
                               std::shared_ptr<const List>, std::shared_ptr<const Dict>,
                               std::shared_ptr<const Callable>, Namespace*>;

  Value() : variant_(None{}) {}
  explicit Value(Undefined undefined) : variant_(std::move(undefined)) {}
  explicit Value(bool value) : variant_(value) {}
  explicit Value(int64_t value) : variant_(value) {}
  explicit Value(double value) : variant_(value) {}
  explicit Value(std::string value) : variant_(std::make_shared<const std::string>(std::move(value))) {}
  explicit Value(const char* value) : Value(std::string(value)) {}
  explicit Value(Callable callable);
  explicit Value(Namespace* space) : variant_(space) {}
  // Of lists and dicts. Throws TemplateError when they are nested too deep.
  explicit Value(std::vector<Value> items);
  explicit Value(std::vector<std::pair<Value, Value>> items);
  explicit Value(const OrderedJson& json);

  bool is_undefined() const { return std::holds_alternative<Undefined>(variant_); }
  bool is_none() const { return std::holds_alternative<None>(variant_); }
  bool is_bool() const { return std::holds_alternative<bool>(variant_); }
  bool is_integer() const { return std::holds_alternative<int64_t>(variant_); }
  bool is_float() const { return std::holds_alternative<double>(variant_); }
  bool is_number() const { return is_integer() || is_float() || is_bool(); }
  bool is_whole() const { return is_integer() || is_bool(); }  // a bool is an integer in Python
  const std::string* string() const { return get<std::string>(); }
  const std::vector<Value>* list() const;
  const Dict* dict() const { return get<Dict>(); }
  const Callable* callable() const { return get<Callable>(); }
  Namespace* space() const;
  const Undefined& undefined() const { return std::get<Undefined>(variant_); }

  int64_t integer() const;  // of a number that is_whole
  double number() const;    // of a number
  int depth() const;

  const char* type_name() const;  // Python's
  bool truth() const;
  std::string text(Budget& budget) const;  // str()
  std::string repr(Budget& budget) const;

 private:
  template <typename T>
  const T* get() const {
    const auto* pointer = std::get_if<std::shared_ptr<const T>>(&variant_);
    return pointer == nullptr ? nullptr : pointer->get();
  }

  Variant variant_;
};

// The one kind of value that changes. Owned by the evaluator, so that no cycle keeps it alive.
struct Namespace {
  std::map<std::string, Value> values;
};

struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;

  // One value for each of `names`, undefined where none was given. Throws TemplateError for too many, unknown or
  // repeated ones, and when one of the first `required` is missing.
  std::vector<Value> bind(const std::string& function, const std::vector<std::string>& names, size_t required) const;
};

struct Callable {
  std::string name;
  std::function<Value(const Arguments&)> call;
  int depth = 0;  // of what it holds
};

// Whether a dict takes them for the same key.
bool same_key(const Value& a, const Value& b);

// Python's == and <; `less` throws TemplateError for types that have no order.
bool equal(const Value& a, const Value& b, Budget& budget);
bool less(const Value& a, const Value& b, Budget& budget);
bool contains(const Value& container, const Value& item, Budget& budget);

// What a loop or filter goes through: of a list its items, of a string its characters, of a dict its keys.
std::vector<Value> iterate(const Value& value, Budget& budget);

// json.dumps(value, ensure_ascii=False, indent=indent); a negative indent is None.
std::string to_json(const Value& value, int64_t indent, Budget& budget);

}  // namespace dynslice::jinja
