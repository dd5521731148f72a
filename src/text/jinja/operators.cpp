#include <algorithm>
#include <cmath>
#include <limits>

#include "text/jinja/functions.h"

namespace dynslice::jinja {
namespace {

using Values = std::vector<Value>;

Value whole_result(const std::string& sign, int64_t a, int64_t b) {
  int64_t result = 0;
  bool overflow = false;
  if (sign == "+") overflow = __builtin_add_overflow(a, b, &result);
  if (sign == "-") overflow = __builtin_sub_overflow(a, b, &result);
  if (sign == "*") overflow = __builtin_mul_overflow(a, b, &result);
  if (sign == "//" || sign == "%") {
    if (b == 0) fail(0, "division by 0");
    if (b == -1) {
      overflow = sign == "//" && a == std::numeric_limits<int64_t>::min();
      result = sign == "//" && !overflow ? -a : 0;
    } else {  // towards minus infinity, as in Python
      const int64_t rest = a % b != 0 && (a % b < 0) != (b < 0) ? a % b + b : a % b;
      result = sign == "%" ? rest : (a - rest) / b;
    }
  }
  if (sign == "**") {
    result = 1;
    for (int64_t i = 0; i < b && !overflow && (result != 0 && (a > 1 || a < -1 || i < 2)); ++i) {
      overflow = __builtin_mul_overflow(result, a, &result);
    }
    if (a == -1 && b % 2 != 0) result = -1;
    if (a == -1 && b % 2 == 0) result = 1;
  }
  if (overflow) fail(0, a, " ", sign, " ", b, " is too large");
  return Value(result);
}

Value float_result(const std::string& sign, double a, double b) {
  if (b == 0 && (sign == "/" || sign == "//" || sign == "%")) fail(0, "division by 0");
  if (sign == "+") return Value(a + b);
  if (sign == "-") return Value(a - b);
  if (sign == "*") return Value(a * b);
  if (sign == "/") return Value(a / b);
  if (sign == "//") return Value(std::floor(a / b));
  if (sign == "%") return Value(a - b * std::floor(a / b));
  return Value(std::pow(a, b));
}

std::string repeated(const std::string& text, int64_t times, Budget& budget) {
  const auto count = static_cast<size_t>(std::max<int64_t>(0, times));
  if (!text.empty() && count > static_cast<size_t>(Budget::kWork) / text.size())
    fail(0, "takes too much time or memory");
  budget.spend(text.size() * count);
  std::string out;
  for (size_t i = 0; i < (text.empty() ? 0 : count); ++i) out += text;
  return out;
}

}  // namespace

Value apply_operator(const std::string& sign, const Value& left, const Value& right, Budget& budget) {
  for (const Value* side : {&left, &right}) {
    if (side->is_undefined()) fail(0, side->undefined().what);
  }
  if (left.is_number() && right.is_number()) {
    const bool by_whole = left.is_whole() && right.is_whole() && sign != "/" && (sign != "**" || right.integer() >= 0);
    return by_whole ? whole_result(sign, left.integer(), right.integer())
                    : float_result(sign, left.number(), right.number());
  }
  if (sign == "+" && left.string() != nullptr && right.string() != nullptr) {
    budget.spend(left.string()->size() + right.string()->size());
    return Value(*left.string() + *right.string());
  }
  if (sign == "+" && left.list() != nullptr && right.list() != nullptr) {
    Values items = iterate(left, budget);
    const Values more = iterate(right, budget);
    items.insert(items.end(), more.begin(), more.end());
    return Value(std::move(items));
  }
  if (sign == "*" && left.string() != nullptr && right.is_whole()) {
    return Value(repeated(*left.string(), right.integer(), budget));
  }
  fail(0, "there is no ", sign, " of ", left.type_name(), " and ", right.type_name());
}

}  // namespace dynslice::jinja
