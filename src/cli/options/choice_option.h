// An option whose values are the rows of an enum's table (dynslice/support/choices.h): its check, its help, completion
// and documentation come from there.
#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>

#include "dynslice/support/choices.h"

namespace dynslice::cli {

template <typename T>
struct ChoiceOf {
  using Type = T;
  static constexpr bool kIsOptional = false;
};
template <typename T>
struct ChoiceOf<std::optional<T>> {
  using Type = T;
  static constexpr bool kIsOptional = true;
};

// Adds "; NAME: MEANING" to what an option's help says so far; nothing where the name says it all.
inline void add_meaning(std::string& help, std::string_view name, std::string_view meaning) {
  if (meaning.empty()) return;
  if (!help.empty()) help += "; ";
  help.append(name).append(": ").append(meaning);
}

// The same for all rows of a table.
template <typename Enum>
void add_meanings(std::string& help) {
  for (const auto& row : choices(Enum())) add_meaning(help, row.name, row.meaning);
}

// `target` is an enum, whose value is the default, or an optional one. `help` says what is chosen; the rows' meanings
// follow it.
template <typename Target>
CLI::Option* add_choice(CLI::App& verb, const std::string& name, Target& target, std::string help) {
  using Enum = typename ChoiceOf<Target>::Type;
  add_meanings<Enum>(help);
  CLI::Option* option = verb.add_option_function<std::string>(
      name, [&target](const std::string& text) { target = *choice_named<Enum>(text); }, help);
  if constexpr (!ChoiceOf<Target>::kIsOptional) option->default_str(name_of(target));
  return option->check(CLI::IsMember(choice_names<Enum>()));
}

}  // namespace dynslice::cli
