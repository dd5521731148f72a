#include <algorithm>
#include <ctime>

#include "text/jinja/functions.h"

namespace dynslice::jinja {

Value range_of(const Arguments& arguments, Budget& budget) {
  constexpr int64_t kLongest = 100'000;  // jinja2's, in its sandbox
  std::vector<Value> bound = arguments.bind("range", {"start", "stop", "step"}, 1);
  const auto number = [&](size_t i) { return integer_argument("range", bound[i]); };
  const bool one = bound[1].is_undefined();
  const int64_t start = one ? 0 : number(0), stop = one ? number(0) : number(1);
  const int64_t step = bound[2].is_undefined() ? 1 : number(2);
  if (step == 0) fail(0, "range: the step is 0");
  std::vector<Value> items;
  for (int64_t at = start; step > 0 ? at < stop : at > stop;) {
    if (static_cast<int64_t>(items.size()) == kLongest) fail(0, "range: is longer than ", kLongest);
    budget.spend(Budget::kStep);
    items.emplace_back(at);
    if (__builtin_add_overflow(at, step, &at)) break;
  }
  return Value(std::move(items));
}

Value time_now(const Arguments& arguments) {
  const std::vector<Value> bound = arguments.bind("strftime_now", {"format"}, 1);
  const std::string& format = string_argument("strftime_now", bound[0]);
  if (format.size() > 256) fail(0, "strftime_now: the format is longer than 256 bytes");
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  ::localtime_r(&now, &local);
  char buffer[8192];
  return Value(std::string(buffer, std::strftime(buffer, sizeof buffer, format.c_str(), &local)));
}

void raise_exception(const Arguments& arguments, Budget& budget) {
  fail(0, "says: ", arguments.bind("raise_exception", {"message"}, 1)[0].text(budget));
}

Value dict_of(std::vector<std::pair<Value, Value>> items) {
  std::vector<std::pair<Value, Value>> once;
  for (auto& item : items) {
    const auto earlier =
        std::find_if(once.begin(), once.end(), [&](const auto& one) { return same_key(one.first, item.first); });
    if (earlier != once.end()) {
      earlier->second = std::move(item.second);
    } else {
      once.push_back(std::move(item));
    }
  }
  return Value(std::move(once));
}

}  // namespace dynslice::jinja
