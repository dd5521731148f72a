#include <algorithm>

#include "dynslice/text/tokenizer/python_string.h"
#include "dynslice/text/tokenizer/tokenizer_unicode.h"
#include "text/jinja/functions.h"

namespace dynslice::jinja {

using namespace python;

namespace {

using Values = std::vector<Value>;

struct StringMethod {
  const char* name;
  std::vector<std::string> parameters;
  size_t required;
  Value (*call)(const std::string& self, const Values& arguments, Budget& budget);
};

const std::string* optional_string(const char* function, const Value& value) {
  return value.is_undefined() || value.is_none() ? nullptr : &string_argument(function, value);
}

int64_t optional_integer(const char* function, const Value& value, int64_t fallback) {
  return value.is_undefined() ? fallback : integer_argument(function, value);
}

Value list_of(const std::vector<std::string_view>& parts, Budget& budget) {
  budget.spend(4 * Budget::kStep * parts.size());
  Values items;
  for (const std::string_view part : parts) items.emplace_back(std::string(part));
  return Value(std::move(items));
}

Value split_method(const char* name, const std::string& self, const Values& arguments, Budget& budget) {
  const std::string* separator = optional_string(name, arguments[0]);
  if (separator != nullptr && separator->empty()) fail(0, name, ": the separator is empty");
  return list_of(split(self, separator, optional_integer(name, arguments[1], -1)), budget);
}

// startswith and endswith take a string, or several of which one will do.
template <typename Matches>
Value any_match(const char* name, const Value& argument, Budget& budget, Matches matches) {
  const auto one_matches = [&](const Value& one) {
    budget.spend(Budget::kStep + string_argument(name, one).size());
    return matches(*one.string());
  };
  if (argument.list() == nullptr) return Value(one_matches(argument));
  return Value(std::any_of(argument.list()->begin(), argument.list()->end(), one_matches));
}

Value replace_method(const std::string& self, const Values& arguments, Budget& budget) {
  const std::string& old = string_argument("replace", arguments[0]);
  const std::string& with = string_argument("replace", arguments[1]);
  if (old.empty()) fail(0, "replace: the text to be replaced is empty");
  budget.spend(self.size() + with.size() * count_text(self, old));
  return Value(replace_text(self, old, with, optional_integer("replace", arguments[2], -1)));
}

Value find_method(const std::string& self, const Values& arguments, Budget&) {
  const size_t at = find_text(self, string_argument("find", arguments[0]));
  return Value(at == std::string_view::npos ? int64_t{-1} : count_characters(std::string_view(self).substr(0, at)));
}

Value join_method(const std::string& self, const Values& arguments, Budget& budget) {
  std::string out;
  bool first = true;
  for (const Value& item : iterate(arguments[0], budget)) {
    const std::string& text = string_argument("join", item);
    budget.spend(self.size() + text.size());
    out += (std::exchange(first, false) ? "" : self) + text;
  }
  return Value(std::move(out));
}

Value strip_method(const char* name, const std::string& self, const Values& arguments, bool left, bool right) {
  const std::string* chars = optional_string(name, arguments[0]);
  // All of them are looked at for every character that goes.
  if (chars != nullptr && chars->size() > 256) fail(0, name, ": more than 256 bytes of characters");
  return Value(std::string(strip(self, chars, left, right)));
}

Value without_end(const std::string& self, const std::string& end, bool at_front) {
  const bool there = at_front ? self.starts_with(end) : self.ends_with(end);
  if (!there) return Value(self);
  return Value(at_front ? self.substr(end.size()) : self.substr(0, self.size() - end.size()));
}

const StringMethod kStringMethods[] = {
    {"strip",
     {"chars"},
     0,
     [](const std::string& s, const Values& a, Budget&) { return strip_method("strip", s, a, true, true); }},
    {"lstrip",
     {"chars"},
     0,
     [](const std::string& s, const Values& a, Budget&) { return strip_method("lstrip", s, a, true, false); }},
    {"rstrip",
     {"chars"},
     0,
     [](const std::string& s, const Values& a, Budget&) { return strip_method("rstrip", s, a, false, true); }},
    {"split",
     {"sep", "maxsplit"},
     0,
     [](const std::string& s, const Values& a, Budget& b) { return split_method("split", s, a, b); }},
    {"splitlines", {}, 0, [](const std::string& s, const Values&, Budget& b) { return list_of(split_lines(s), b); }},
    {"startswith",
     {"prefix"},
     1,
     [](const std::string& s, const Values& a, Budget& b) {
       return any_match("startswith", a[0], b, [&](const std::string& start) { return s.starts_with(start); });
     }},
    {"endswith",
     {"suffix"},
     1,
     [](const std::string& s, const Values& a, Budget& b) {
       return any_match("endswith", a[0], b, [&](const std::string& end) { return s.ends_with(end); });
     }},
    {"upper", {}, 0, [](const std::string& s, const Values&, Budget&) { return Value(to_upper(s)); }},
    {"lower", {}, 0, [](const std::string& s, const Values&, Budget&) { return Value(to_lower(s)); }},
    {"title", {}, 0, [](const std::string& s, const Values&, Budget&) { return Value(to_title(s)); }},
    {"capitalize", {}, 0, [](const std::string& s, const Values&, Budget&) { return Value(capitalize(s)); }},
    {"replace", {"old", "new", "count"}, 2, replace_method},
    {"find", {"sub"}, 1, find_method},
    {"join", {"iterable"}, 1, join_method},
    {"removeprefix",
     {"prefix"},
     1,
     [](const std::string& s, const Values& a, Budget&) {
       return without_end(s, string_argument("removeprefix", a[0]), true);
     }},
    {"removesuffix",
     {"suffix"},
     1,
     [](const std::string& s, const Values& a, Budget&) {
       return without_end(s, string_argument("removesuffix", a[0]), false);
     }},
};

Value string_method(const Value& object, const std::string& name, Budget& budget) {
  for (const StringMethod& method : kStringMethods) {
    if (name != method.name) continue;
    return Value(Callable{name, [object, &method, &budget](const Arguments& arguments) {
                            const std::string& self = *object.string();
                            budget.spend(2 * self.size());
                            return method.call(self, arguments.bind(method.name, method.parameters, method.required),
                                               budget);
                          }});
  }
  return Value(Undefined{"'str' has no '" + name + "'"});
}

Value dict_items(const Dict& dict, const std::string& what, Budget& budget) {
  budget.spend(4 * Budget::kStep * dict.items.size());
  Values items;
  for (const auto& [key, value] : dict.items) {
    items.push_back(what == "keys" ? key : what == "values" ? value : Value(Values{key, value}));
  }
  return Value(std::move(items));
}

Value dict_method(const Value& object, const std::string& name, Budget& budget) {
  if (name == "items" || name == "keys" || name == "values") {
    return Value(Callable{name,
                          [object, name, &budget](const Arguments& arguments) {
                            arguments.bind(name, {}, 0);
                            return dict_items(*object.dict(), name, budget);
                          },
                          object.depth()});
  }
  if (name == "get") {
    return Value(Callable{name,
                          [object, &budget](const Arguments& arguments) {
                            const Values bound = arguments.bind("get", {"key", "default"}, 1);
                            const Value* value = object.dict()->find(bound[0], budget);
                            if (value != nullptr) return *value;
                            return arguments.positional.size() + arguments.named.size() > 1 ? bound[1] : Value();
                          },
                          object.depth()});
  }
  return Value(Undefined{"'dict' has no '" + name + "'"});
}

}  // namespace

Value method_of(const Value& object, const std::string& name, Budget& budget) {
  if (object.string() != nullptr) return string_method(object, name, budget);
  if (object.dict() != nullptr) return dict_method(object, name, budget);
  return Value(Undefined{"'" + std::string(object.type_name()) + "' has no '" + name + "'"});
}

Value attribute_of(const Value& object, const std::string& name, Budget& budget) {
  if (object.is_undefined()) fail(0, object.undefined().what);
  if (const Namespace* space = object.space()) {
    const auto found = space->values.find(name);
    return found != space->values.end() ? found->second : Value(Undefined{"the namespace has no '" + name + "'"});
  }
  Value method = method_of(object, name, budget);
  if (!method.is_undefined() || object.dict() == nullptr) return method;
  const Value* value = object.dict()->find(Value(name), budget);
  return value != nullptr ? *value : method;
}

Value item_of(const Value& object, const Value& key, Budget& budget) {
  if (object.is_undefined()) fail(0, object.undefined().what);
  if (object.dict() != nullptr) {
    if (const Value* value = object.dict()->find(key, budget)) return *value;
  }
  if (key.string() != nullptr) {
    return object.space() != nullptr ? attribute_of(object, *key.string(), budget)
                                     : method_of(object, *key.string(), budget);
  }
  if (key.is_whole() && (object.list() != nullptr || object.string() != nullptr)) {
    const Value items = object.list() != nullptr ? object : list_of(characters(*object.string()), budget);
    const auto size = static_cast<int64_t>(items.list()->size());
    const int64_t index = key.integer() < 0 ? key.integer() + size : key.integer();
    if (index >= 0 && index < size) return (*items.list())[static_cast<size_t>(index)];
  }
  return Value(Undefined{"'" + std::string(object.type_name()) + "' has no item " + key.repr(budget)});
}

Value slice_of(const Value& object, const Value& begin, const Value& end, const Value& step_value, Budget& budget) {
  if (object.list() == nullptr && object.string() == nullptr) {
    fail(0, object.is_undefined() ? object.undefined().what : std::string(object.type_name()) + " cannot be sliced");
  }
  const Values items = iterate(object, budget);
  const auto size = static_cast<int64_t>(items.size());
  const int64_t step = step_value.is_none() ? 1 : integer_argument("a slice", step_value);
  if (step == 0) fail(0, "a slice has the step 0");
  const auto place = [&](const Value& value, int64_t fallback) {
    if (value.is_none()) return fallback;
    const int64_t index = integer_argument("a slice", value);
    const int64_t least = step < 0 ? -1 : 0;
    return std::clamp(index < 0 ? std::max(index, -size - 1) + size : index, least, step < 0 ? size - 1 : size);
  };
  const int64_t first = place(begin, step < 0 ? size - 1 : 0), last = place(end, step < 0 ? -1 : size);
  Values chosen;
  const auto more = [&](int64_t at) { return step > 0 ? at < last : at > last; };
  const int64_t stride = std::clamp(step, -size - 1, size + 1);  // a longer one ends at once as well
  for (int64_t at = first; more(at); at += stride) chosen.push_back(items[static_cast<size_t>(at)]);
  if (object.list() != nullptr) return Value(std::move(chosen));
  std::string text;
  for (const Value& one : chosen) text += *one.string();
  return Value(std::move(text));
}

const std::string& string_argument(std::string_view function, const Value& value) {
  if (value.string() == nullptr) {
    fail(0, function, ": ",
         value.is_undefined() ? value.undefined().what : "a string is needed, not " + std::string(value.type_name()));
  }
  return *value.string();
}

int64_t integer_argument(const std::string& function, const Value& value) {
  if (!value.is_whole()) {
    fail(0, function, ": ",
         value.is_undefined() ? value.undefined().what
                              : "a whole number is needed, not " + std::string(value.type_name()));
  }
  return value.integer();
}

}  // namespace dynslice::jinja
