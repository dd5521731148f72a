#include <algorithm>
#include <charconv>
#include <cmath>

#include "dynslice/text/tokenizer/python_string.h"
#include "dynslice/text/tokenizer/tokenizer_unicode.h"
#include "text/jinja/functions.h"

namespace dynslice::jinja {

using namespace python;

namespace {

using Values = std::vector<Value>;

struct Filter {
  const char* name;
  std::vector<std::string> parameters;
  size_t required;
  Value (*apply)(const Value& input, const Values& arguments, Budget& budget);
};

bool is_given(const Value& argument) { return !argument.is_undefined() && !argument.is_none(); }

// "name" or "outer.inner" of an item.
Value path_of(const Value& item, const std::string& path, Budget& budget) {
  Value value = item;
  const std::string dot = ".";
  for (const std::string_view part : split(path, &dot, -1)) value = item_of(value, Value(std::string(part)), budget);
  return value;
}

Value join(const Value& input, const Values& arguments, Budget& budget) {
  const std::string separator = arguments[0].text(budget);
  std::string out;
  bool first = true;
  for (const Value& item : iterate(input, budget)) {
    const Value part = is_given(arguments[1]) ? path_of(item, string_argument("join", arguments[1]), budget) : item;
    budget.spend(separator.size());
    out += (std::exchange(first, false) ? "" : separator) + part.text(budget);
  }
  return Value(std::move(out));
}

Value length(const Value& input, const Values&, Budget& budget) {
  if (const std::string* text = input.string()) {
    budget.spend(text->size());
    return Value(count_characters(*text));
  }
  if (input.list() != nullptr) return Value(static_cast<int64_t>(input.list()->size()));
  if (input.dict() != nullptr) return Value(static_cast<int64_t>(input.dict()->items.size()));
  if (!input.is_undefined()) fail(0, "length: ", input.type_name(), " has none");
  return Value(int64_t{0});
}

Value either_end(const Value& input, bool front, Budget& budget) {
  const Values items = iterate(input, budget);
  if (items.empty()) return Value(Undefined{"the first or last item of nothing"});
  return front ? items.front() : items.back();
}

Value reverse(const Value& input, const Values&, Budget& budget) {
  Values items = iterate(input, budget);
  std::reverse(items.begin(), items.end());
  if (input.string() == nullptr) return Value(std::move(items));
  std::string text;
  for (const Value& item : items) text += *item.string();
  return Value(std::move(text));
}

Value to_integer(const Value& input, const Values& arguments, Budget&) {
  const Value fallback = is_given(arguments[0]) ? arguments[0] : Value(int64_t{0});
  double value = 0;
  if (const std::string* text = input.string()) {
    const std::string_view digits = strip(*text, nullptr, true, true);
    int64_t whole = 0;
    const auto [whole_end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), whole);
    if (error == std::errc() && whole_end == digits.data() + digits.size()) return Value(whole);
    const auto [end, float_error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    if (float_error != std::errc() || end != digits.data() + digits.size()) return fallback;
  } else if (input.is_whole()) {
    return Value(input.integer());
  } else if (input.is_float()) {
    value = input.number();
  } else {
    return fallback;
  }
  return std::abs(value) < 9e18 ? Value(static_cast<int64_t>(value)) : fallback;
}

Value indent(const Value& input, const Values& arguments, Budget& budget) {
  const int64_t width = arguments[0].is_undefined() ? 4 : integer_argument("indent", arguments[0]);
  if (width < 0 || width > 1000) fail(0, "indent: a width of ", width, " spaces");
  const bool first = arguments[1].truth(), blank = arguments[2].truth();
  const std::string spaces(static_cast<size_t>(width), ' ');
  const std::string text = input.text(budget), newline = "\n";
  std::string out;
  bool is_first = true;
  for (const std::string_view line : split(text, &newline, -1)) {
    budget.spend(spaces.size() + Budget::kStep);
    const bool moves = is_first ? first : blank || !line.empty();
    out += (is_first ? "" : "\n") + (moves ? spaces : "") + std::string(line);
    is_first = false;
  }
  return Value(std::move(out));
}

Value call_method(const Value& input, const char* name, Arguments arguments, Budget& budget) {
  return method_of(Value(input.text(budget)), name, budget).callable()->call(arguments);
}

const Filter kFilters[] = {
    {"trim",
     {"chars"},
     0,
     [](const Value& v, const Values& a, Budget& b) { return call_method(v, "strip", {a, {}}, b); }},
    {"upper", {}, 0, [](const Value& v, const Values&, Budget& b) { return call_method(v, "upper", {}, b); }},
    {"lower", {}, 0, [](const Value& v, const Values&, Budget& b) { return call_method(v, "lower", {}, b); }},
    {"title", {}, 0, [](const Value& v, const Values&, Budget& b) { return call_method(v, "title", {}, b); }},
    {"capitalize", {}, 0, [](const Value& v, const Values&, Budget& b) { return call_method(v, "capitalize", {}, b); }},
    {"replace",
     {"old", "new", "count"},
     2,
     [](const Value& v, const Values& a, Budget& b) { return call_method(v, "replace", {a, {}}, b); }},
    {"length", {}, 0, length},
    {"count", {}, 0, length},
    {"join", {"d", "attribute"}, 0, join},
    {"default",
     {"default_value", "boolean"},
     0,
     [](const Value& v, const Values& a, Budget&) {
       const bool missing = v.is_undefined() || (a[1].truth() && !v.truth());
       return !missing ? v : a[0].is_undefined() ? Value("") : a[0];
     }},
    {"tojson",
     {"ensure_ascii", "indent", "separators", "sort_keys"},
     0,
     [](const Value& v, const Values& a, Budget& b) {
       if (a[0].truth() || is_given(a[2]) || a[3].truth()) fail(0, "tojson: of its arguments only indent is supported");
       return Value(to_json(v, is_given(a[1]) ? std::max<int64_t>(0, integer_argument("tojson", a[1])) : -1, b));
     }},
    {"list", {}, 0, [](const Value& v, const Values&, Budget& b) { return Value(iterate(v, b)); }},
    {"first", {}, 0, [](const Value& v, const Values&, Budget& b) { return either_end(v, true, b); }},
    {"last", {}, 0, [](const Value& v, const Values&, Budget& b) { return either_end(v, false, b); }},
    {"reverse", {}, 0, reverse},
    {"items",
     {},
     0,
     [](const Value& v, const Values&, Budget& b) {
       if (v.is_undefined()) return Value(Values{});
       if (v.dict() == nullptr) fail(0, "items: a dict is needed, not ", v.type_name());
       return method_of(v, "items", b).callable()->call({});
     }},
    {"int", {"default"}, 0, to_integer},
    {"string", {}, 0, [](const Value& v, const Values&, Budget& b) { return Value(v.text(b)); }},
    {"safe", {}, 0, [](const Value& v, const Values&, Budget&) { return v; }},  // nothing is escaped anyway
    {"indent", {"width", "first", "blank"}, 0, indent},
};

// map("filter", ...) and map(attribute="name", default=...).
Value map_items(const Value& input, const Arguments& arguments, Budget& budget) {
  Values results;
  if (!arguments.positional.empty()) {
    const std::string& filter = string_argument("map", arguments.positional.front());
    const Arguments rest{{arguments.positional.begin() + 1, arguments.positional.end()}, arguments.named};
    for (const Value& item : iterate(input, budget)) results.push_back(apply_filter(filter, item, rest, budget));
    return Value(std::move(results));
  }
  const Values bound = arguments.bind("map", {"attribute", "default"}, 1);
  for (const Value& item : iterate(input, budget)) {
    const Value value = path_of(item, string_argument("map", bound[0]), budget);
    results.push_back(value.is_undefined() ? bound[1] : value);
  }
  return Value(std::move(results));
}

// select, reject, selectattr and rejectattr: what a test, or truth, says of an item or of an attribute of it.
Value choose(const std::string& name, const Value& input, const Arguments& arguments, Budget& budget) {
  const bool by_attribute = name.ends_with("attr"), keeps = name.starts_with("select");
  Values given = arguments.positional;
  if (by_attribute && given.empty()) fail(0, name, " needs the name of an attribute");
  const std::string path = by_attribute ? string_argument(name, given.front()) : "";
  if (by_attribute) given.erase(given.begin());
  const std::string test = given.empty() ? "" : string_argument(name, given.front());
  if (!given.empty()) given.erase(given.begin());
  const Arguments rest{given, arguments.named};
  Values chosen;
  for (const Value& item : iterate(input, budget)) {
    const Value value = by_attribute ? path_of(item, path, budget) : item;
    if ((test.empty() ? value.truth() : apply_test(test, value, rest, budget)) == keeps) chosen.push_back(item);
  }
  return Value(std::move(chosen));
}

}  // namespace

Value apply_filter(const std::string& name, const Value& input, const Arguments& arguments, Budget& budget) {
  const std::string full = name == "d" ? "default" : name;
  if (full == "map") return map_items(input, arguments, budget);
  if (full == "select" || full == "reject" || full == "selectattr" || full == "rejectattr") {
    return choose(full, input, arguments, budget);
  }
  for (const Filter& filter : kFilters) {
    if (full == filter.name)
      return filter.apply(input, arguments.bind(full, filter.parameters, filter.required), budget);
  }
  fail(0, "the filter \"", name, "\" is not supported");
}

}  // namespace dynslice::jinja
