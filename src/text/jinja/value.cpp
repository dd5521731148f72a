#include "text/jinja/value.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>

#include "dynslice/text/tokenizer/python_string.h"

namespace dynslice::jinja {

using namespace python;

namespace {

constexpr int kMaxDepth = 100;

int deeper(int depth) {
  if (depth >= kMaxDepth) fail(0, "nests lists or dicts more than ", kMaxDepth, " deep");
  return depth + 1;
}

// repr() of a float.
std::string float_text(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  const double size = std::abs(value);
  const bool scientific = size != 0 && (size < 1e-4 || size >= 1e16);
  char buffer[64];
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, value,
                                 scientific ? std::chars_format::scientific : std::chars_format::fixed)
                       .ptr;
  std::string text(buffer, end);
  if (!scientific && text.find('.') == std::string::npos) text += ".0";
  return text;
}

std::string quoted_as_python(const std::string& text) {
  const bool single = text.find('\'') == std::string::npos || text.find('"') != std::string::npos;
  const char quote = single ? '\'' : '"';
  std::string out(1, quote);
  for (const char c : text) {
    if (c == quote || c == '\\') out += '\\';
    if (c == '\n') {
      out += "\\n";
    } else if (c == '\t') {
      out += "\\t";
    } else if (c == '\r') {
      out += "\\r";
    } else {
      out += c;
    }
  }
  return out + quote;
}

std::string quoted_as_json(const std::string& text) {
  return Json(text).dump(-1, ' ', false, Json::error_handler_t::replace);
}

void spend_on(const std::string& a, const std::string& b, Budget& budget) {
  budget.spend(std::min(a.size(), b.size()) + Budget::kStep);
}

class JsonText {
 public:
  JsonText(int64_t indent, Budget& budget) : indent_(indent), budget_(budget) {}

  void add(const Value& value, int level) {
    budget_.spend(Budget::kStep);
    if (const std::string* string = value.string()) {
      budget_.spend(string->size());
      out_ += quoted_as_json(*string);
    } else if (value.list() != nullptr) {
      const auto& items = *value.list();
      surround('[', ']', items.size(), level, [&](size_t i) { add(items[i], level + 1); });
    } else if (value.dict() != nullptr) {
      const auto& items = value.dict()->items;
      surround('{', '}', items.size(), level, [&](size_t i) {
        const std::string* key = items[i].first.string();
        out_ += quoted_as_json(key != nullptr ? *key : items[i].first.text(budget_)) + ": ";
        add(items[i].second, level + 1);
      });
    } else if (value.is_none()) {
      out_ += "null";
    } else if (value.is_bool()) {
      out_ += value.truth() ? "true" : "false";
    } else if (value.is_number()) {
      out_ += value.text(budget_);
    } else {
      fail(0, "tojson: ", value.is_undefined() ? value.undefined().what : std::string(value.type_name()),
           " has no place in JSON");
    }
  }
  std::string take() { return std::move(out_); }

 private:
  template <typename AddItem>
  void surround(char open, char close, size_t count, int level, AddItem add_item) {
    out_ += open;
    for (size_t i = 0; i < count; ++i) {
      if (i > 0) out_ += indent_ < 0 ? ", " : ",";
      new_line(level + 1);
      add_item(i);
    }
    if (count > 0) new_line(level);
    out_ += close;
  }
  void new_line(int level) {
    if (indent_ < 0) return;
    const size_t spaces = static_cast<size_t>(indent_) * static_cast<size_t>(level);
    budget_.spend(spaces);
    out_ += '\n' + std::string(spaces, ' ');
  }

  int64_t indent_;
  Budget& budget_;
  std::string out_;
};

}  // namespace

Value::Value(Callable callable) : variant_(std::make_shared<const Callable>(std::move(callable))) {}

Value::Value(std::vector<Value> items) {
  int depth = 0;
  for (const Value& item : items) depth = std::max(depth, item.depth());
  variant_ = std::make_shared<const List>(List{std::move(items), deeper(depth)});
}

Value::Value(std::vector<std::pair<Value, Value>> items) {
  int depth = 0;
  for (const auto& [key, value] : items) depth = std::max(depth, value.depth());
  variant_ = std::make_shared<const Dict>(Dict{std::move(items), deeper(depth)});
}

Value::Value(const OrderedJson& json) : variant_(None{}) {
  if (json.is_boolean()) *this = Value(json.get<bool>());
  if (json.is_number_integer()) *this = Value(json.get<int64_t>());
  if (json.is_number_float()) *this = Value(json.get<double>());
  if (json.is_string()) *this = Value(json.get<std::string>());
  if (json.is_array()) {
    std::vector<Value> items;
    for (const OrderedJson& item : json) items.emplace_back(item);
    *this = Value(std::move(items));
  }
  if (json.is_object()) {
    std::vector<std::pair<Value, Value>> items;
    for (const auto& [key, item] : json.items()) items.emplace_back(Value(key), Value(item));
    *this = Value(std::move(items));
  }
}

const std::vector<Value>* Value::list() const {
  const List* list = get<List>();
  return list == nullptr ? nullptr : &list->items;
}

Namespace* Value::space() const {
  Namespace* const* space = std::get_if<Namespace*>(&variant_);
  return space == nullptr ? nullptr : *space;
}

int64_t Value::integer() const { return is_bool() ? int64_t{std::get<bool>(variant_)} : std::get<int64_t>(variant_); }

double Value::number() const { return is_float() ? std::get<double>(variant_) : static_cast<double>(integer()); }

int Value::depth() const {
  if (const List* list = get<List>()) return list->depth;
  if (callable() != nullptr) return callable()->depth;
  return dict() != nullptr ? dict()->depth : 0;
}

const char* Value::type_name() const {
  static constexpr const char* kNames[] = {"undefined", "None", "bool", "int",      "float",
                                           "str",       "list", "dict", "function", "namespace"};
  static_assert(std::size(kNames) == std::variant_size_v<Variant>);
  return kNames[variant_.index()];
}

bool Value::truth() const {
  if (is_undefined() || is_none()) return false;
  if (is_number()) return number() != 0;
  if (const std::string* text = string()) return !text->empty();
  if (list() != nullptr) return !list()->empty();
  return dict() == nullptr || !dict()->items.empty();
}

std::string Value::text(Budget& budget) const {
  if (is_undefined()) return "";
  if (string() == nullptr) return repr(budget);
  budget.spend(string()->size());
  return *string();
}

std::string Value::repr(Budget& budget) const {
  budget.spend(Budget::kStep + (string() != nullptr ? string()->size() : 0));
  if (is_undefined()) return "Undefined";
  if (is_none()) return "None";
  if (is_bool()) return truth() ? "True" : "False";
  if (is_integer()) return std::to_string(integer());
  if (is_float()) return float_text(number());
  if (string() != nullptr) return quoted_as_python(*string());
  std::string out;
  const auto add = [&](const std::string& item) {
    budget.spend(item.size());
    out += (out.empty() ? "" : ", ") + item;
  };
  if (list() != nullptr) {
    for (const Value& item : *list()) add(item.repr(budget));
    return "[" + out + "]";
  }
  if (dict() != nullptr) {
    for (const auto& [key, value] : dict()->items) add(key.repr(budget) + ": " + value.repr(budget));
    return "{" + out + "}";
  }
  return std::string("<") + type_name() + ">";
}

bool same_key(const Value& a, const Value& b) {
  if (a.string() != nullptr && b.string() != nullptr) return *a.string() == *b.string();
  return a.is_number() && b.is_number() && a.number() == b.number();
}

const Value* Dict::find(const Value& key, Budget& budget) const {
  budget.spend((Budget::kStep + (key.string() != nullptr ? key.string()->size() : 0)) * items.size());
  const auto found =
      std::find_if(items.begin(), items.end(), [&](const auto& item) { return same_key(item.first, key); });
  return found == items.end() ? nullptr : &found->second;
}

std::vector<Value> Arguments::bind(const std::string& function, const std::vector<std::string>& names,
                                   size_t required) const {
  if (positional.size() > names.size()) {
    fail(0, function, " takes at most ", names.size(), " arguments; ", positional.size(), " are given");
  }
  std::vector<Value> bound(names.size(), Value(Undefined{"an argument that is not given"}));
  std::vector<bool> given(names.size(), false);
  std::copy(positional.begin(), positional.end(), bound.begin());
  std::fill_n(given.begin(), positional.size(), true);
  for (const auto& [name, value] : named) {
    const auto place = static_cast<size_t>(std::find(names.begin(), names.end(), name) - names.begin());
    if (place == names.size()) fail(0, function, " has no argument \"", name, "\"");
    if (given[place]) fail(0, function, " is given \"", name, "\" twice");
    bound[place] = value;
    given[place] = true;
  }
  for (size_t i = 0; i < required; ++i) {
    if (!given[i]) fail(0, function, " needs the argument \"", names[i], "\"");
  }
  return bound;
}

bool equal(const Value& a, const Value& b, Budget& budget) {
  budget.spend(Budget::kStep);
  if (a.is_number() && b.is_number()) {
    return a.is_whole() && b.is_whole() ? a.integer() == b.integer() : a.number() == b.number();
  }
  if (a.string() != nullptr && b.string() != nullptr) {
    spend_on(*a.string(), *b.string(), budget);
    return *a.string() == *b.string();
  }
  if (a.list() != nullptr && b.list() != nullptr) {
    return std::equal(a.list()->begin(), a.list()->end(), b.list()->begin(), b.list()->end(),
                      [&](const Value& x, const Value& y) { return equal(x, y, budget); });
  }
  if (a.dict() != nullptr && b.dict() != nullptr) {
    if (a.dict()->items.size() != b.dict()->items.size()) return false;
    return std::all_of(a.dict()->items.begin(), a.dict()->items.end(), [&](const auto& item) {
      const Value* other = b.dict()->find(item.first, budget);
      return other != nullptr && equal(item.second, *other, budget);
    });
  }
  if (a.callable() != nullptr || a.space() != nullptr) return a.callable() == b.callable() && a.space() == b.space();
  return (a.is_none() && b.is_none()) || (a.is_undefined() && b.is_undefined());
}

bool less(const Value& a, const Value& b, Budget& budget) {
  budget.spend(Budget::kStep);
  if (a.is_whole() && b.is_whole()) return a.integer() < b.integer();
  if (a.is_number() && b.is_number()) return a.number() < b.number();
  if (a.string() != nullptr && b.string() != nullptr) {
    spend_on(*a.string(), *b.string(), budget);
    return *a.string() < *b.string();  // the order of UTF-8's bytes is that of code points
  }
  if (a.list() != nullptr && b.list() != nullptr) {
    return std::lexicographical_compare(a.list()->begin(), a.list()->end(), b.list()->begin(), b.list()->end(),
                                        [&](const Value& x, const Value& y) { return less(x, y, budget); });
  }
  if (a.is_undefined() || b.is_undefined()) fail(0, (a.is_undefined() ? a : b).undefined().what);
  fail(0, "there is no order of ", a.type_name(), " and ", b.type_name());
}

bool contains(const Value& container, const Value& item, Budget& budget) {
  if (const std::string* text = container.string()) {
    if (item.string() == nullptr) fail(0, "'in' a string must have a string on its left, not ", item.type_name());
    budget.spend(text->size() + item.string()->size());
    return ::memmem(text->data(), text->size(), item.string()->data(), item.string()->size()) != nullptr;
  }
  if (container.dict() != nullptr) return container.dict()->find(item, budget) != nullptr;
  if (container.is_undefined()) return false;
  if (container.list() == nullptr) fail(0, "nothing can be 'in' ", container.type_name());
  return std::any_of(container.list()->begin(), container.list()->end(),
                     [&](const Value& one) { return equal(one, item, budget); });
}

std::vector<Value> iterate(const Value& value, Budget& budget) {
  std::vector<Value> items;
  if (value.list() != nullptr) {
    budget.spend(Budget::kStep * value.list()->size());
    return *value.list();
  }
  if (const std::string* text = value.string()) {
    budget.spend(4 * Budget::kStep * text->size());
    for (const std::string_view one : characters(*text)) items.emplace_back(std::string(one));
    return items;
  }
  if (const Dict* dict = value.dict()) {
    budget.spend(Budget::kStep * dict->items.size());
    for (const auto& [key, one] : dict->items) items.push_back(key);
    return items;
  }
  if (!value.is_undefined()) fail(0, "there is nothing to go through in ", value.type_name());
  return items;
}

std::string to_json(const Value& value, int64_t indent, Budget& budget) {
  JsonText text(std::min<int64_t>(indent, 64), budget);
  text.add(value, 0);
  return text.take();
}

}  // namespace dynslice::jinja
