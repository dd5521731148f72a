// Options with a fixed set of values: an enum, and one table that says what each value is called and what it means. The
// command line's help, its checks, shell completion, files and messages all read that table.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace dynslice {

// A row of the table. Tables with further columns have rows of their own, with these three in front.
template <typename E>
struct Choice {
  E value;
  std::string_view name;     // as it is typed, and as files have it
  std::string_view meaning;  // what follows "NAME: " in help; empty where the name says it
};

// An enum whose table `choices(E)` returns.
template <typename E>
concept Choosable = requires(E value) { choices(value).front().name; };

template <Choosable E>
constexpr const auto& row_of(E value) {
  for (const auto& row : choices(value)) {
    if (row.value == value) return row;
  }
  return choices(value).front();
}

template <Choosable E>
std::string name_of(E value) {
  return std::string(row_of(value).name);
}

template <Choosable E>
std::optional<E> choice_named(std::string_view name) {
  for (const auto& row : choices(E())) {
    if (row.name == name) return row.value;
  }
  return std::nullopt;
}

template <Choosable E>
std::vector<std::string> choice_names() {
  std::vector<std::string> names;
  for (const auto& row : choices(E())) names.emplace_back(row.name);
  return names;
}

// "lr, softmax and blend": the names of the rows that `is_in` takes.
template <Choosable E, typename Predicate>
std::string names_where(Predicate is_in) {
  std::vector<std::string_view> names;
  for (const auto& row : choices(E())) {
    if (is_in(row)) names.push_back(row.name);
  }
  std::string text;
  for (size_t i = 0; i < names.size(); ++i) {
    if (i > 0) text += i + 1 < names.size() ? ", " : " and ";
    text += names[i];
  }
  return text;
}

}  // namespace dynslice
