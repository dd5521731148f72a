#include "dynslice/text/tokenizer/python_string.h"
#include "text/jinja/functions.h"

namespace dynslice::jinja {

using namespace python;

namespace {

using Values = std::vector<Value>;

struct Test {
  const char* name;
  size_t arguments;
  bool (*holds)(const Value& value, const Values& arguments, Budget& budget);
};

int64_t whole(const Value& value) { return integer_argument("a test", value); }

bool divides(const Value& value, const Value& divisor) {
  if (whole(divisor) == 0) fail(0, "divisibleby: division by 0");
  return whole(divisor) == -1 || whole(value) % whole(divisor) == 0;
}

bool is_case(const Value& value, Budget& budget, std::string (*map)(std::string_view),
             std::string (*other)(std::string_view)) {
  const std::string text = value.text(budget);
  budget.spend(4 * text.size());
  return map(text) == text && other(text) != text;
}

const Test kTests[] = {
    {"defined", 0, [](const Value& v, const Values&, Budget&) { return !v.is_undefined(); }},
    {"undefined", 0, [](const Value& v, const Values&, Budget&) { return v.is_undefined(); }},
    {"none", 0, [](const Value& v, const Values&, Budget&) { return v.is_none(); }},
    {"boolean", 0, [](const Value& v, const Values&, Budget&) { return v.is_bool(); }},
    {"true", 0, [](const Value& v, const Values&, Budget&) { return v.is_bool() && v.truth(); }},
    {"false", 0, [](const Value& v, const Values&, Budget&) { return v.is_bool() && !v.truth(); }},
    {"integer", 0, [](const Value& v, const Values&, Budget&) { return v.is_integer(); }},
    {"float", 0, [](const Value& v, const Values&, Budget&) { return v.is_float(); }},
    {"number", 0, [](const Value& v, const Values&, Budget&) { return v.is_number(); }},
    {"string", 0, [](const Value& v, const Values&, Budget&) { return v.string() != nullptr; }},
    {"mapping", 0, [](const Value& v, const Values&, Budget&) { return v.dict() != nullptr; }},
    {"callable", 0, [](const Value& v, const Values&, Budget&) { return v.callable() != nullptr; }},
    {"sequence", 0,
     [](const Value& v, const Values&, Budget&) {
       return v.string() != nullptr || v.list() != nullptr || v.dict() != nullptr || v.is_undefined();
     }},
    {"iterable", 0,
     [](const Value& v, const Values&, Budget&) {
       return v.string() != nullptr || v.list() != nullptr || v.dict() != nullptr || v.is_undefined();
     }},
    {"odd", 0, [](const Value& v, const Values&, Budget&) { return whole(v) % 2 != 0; }},
    {"even", 0, [](const Value& v, const Values&, Budget&) { return whole(v) % 2 == 0; }},
    {"upper", 0, [](const Value& v, const Values&, Budget& b) { return is_case(v, b, to_upper, to_lower); }},
    {"lower", 0, [](const Value& v, const Values&, Budget& b) { return is_case(v, b, to_lower, to_upper); }},
    {"divisibleby", 1, [](const Value& v, const Values& a, Budget&) { return divides(v, a[0]); }},
    {"in", 1, [](const Value& v, const Values& a, Budget& b) { return contains(a[0], v, b); }},
    {"eq", 1, [](const Value& v, const Values& a, Budget& b) { return equal(v, a[0], b); }},
    {"ne", 1, [](const Value& v, const Values& a, Budget& b) { return !equal(v, a[0], b); }},
    {"lt", 1, [](const Value& v, const Values& a, Budget& b) { return less(v, a[0], b); }},
    {"le", 1, [](const Value& v, const Values& a, Budget& b) { return !less(a[0], v, b); }},
    {"gt", 1, [](const Value& v, const Values& a, Budget& b) { return less(a[0], v, b); }},
    {"ge", 1, [](const Value& v, const Values& a, Budget& b) { return !less(v, a[0], b); }},
    {"sameas", 1,
     [](const Value& v, const Values& a, Budget& b) {
       return std::string(v.type_name()) == a[0].type_name() && equal(v, a[0], b);
     }},
};

// Other names of the same tests.
const std::pair<const char*, const char*> kAliases[] = {{"equalto", "eq"},     {"==", "eq"}, {"!=", "ne"},
                                                        {"lessthan", "lt"},    {"<", "lt"},  {"<=", "le"},
                                                        {"greaterthan", "gt"}, {">", "gt"},  {">=", "ge"}};

}  // namespace

bool apply_test(const std::string& name, const Value& input, const Arguments& arguments, Budget& budget) {
  std::string full = name;
  for (const auto& [alias, meant] : kAliases) {
    if (name == alias) full = meant;
  }
  for (const Test& test : kTests) {
    if (full != test.name) continue;
    if (arguments.positional.size() != test.arguments || !arguments.named.empty()) {
      fail(0, "the test \"", name, "\" takes ", test.arguments, " argument(s)");
    }
    return test.holds(input, arguments.positional, budget);
  }
  fail(0, "the test \"", name, "\" is not supported");
}

}  // namespace dynslice::jinja
