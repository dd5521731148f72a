// What --help and --help-all print.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <set>

#include "cli/help/reference.h"
#include "cli/options/groups.h"

namespace dynslice::cli {
namespace {

using CLI::detail::join;

constexpr const char* kExitCodesInShort =
    "Exit codes: 0 done, 1 a defect of dynslice, 2 wrong usage, 3 bad input file, 4 missing data or network,\n"
    "5 out of memory or disk, 130 interrupted.\n";
constexpr size_t kColumn = 30;  // where descriptions begin
constexpr size_t kLine = 110;

// The text in lines, each of which begins at `column`; the first stands there already.
std::string wrapped(const std::string& text, size_t column) {
  std::string lines;
  size_t used = 0;  // of the line
  for (const std::string& word : CLI::detail::split(text, ' ')) {
    if (used > 0 && column + used + 1 + word.size() > kLine) {
      lines += "\n" + std::string(column, ' ');
      used = 0;
    }
    lines += (used > 0 ? " " : "") + word;
    used += (used > 0 ? 1 : 0) + word.size();
  }
  return lines + "\n";
}

// "  --avg RATIO                 average share ...": the name, and the text beside it, or below it where it is long.
std::string entry(const std::string& name, const std::string& text) {
  const std::string begin = "  " + name;
  const bool is_short = begin.size() < kColumn;
  return begin + (is_short ? "" : "\n") + std::string(kColumn - (is_short ? begin.size() : 0), ' ') +
         wrapped(text, kColumn);
}

// The help text, the default, and which of the options `shown` cannot stand beside it.
std::string description(const OptionReference& option, const std::set<std::string>& shown) {
  std::vector<std::string> notes;
  if (!option.default_text.empty()) notes.push_back("default: " + option.default_text);
  std::vector<std::string> excluded;
  for (const std::string& name : option.told_excludes) {
    if (shown.contains(name)) excluded.push_back(name);
  }
  if (!excluded.empty()) notes.push_back("not with " + join(excluded, ", "));
  return option.help + (notes.empty() ? "" : " (" + join(notes, "; ") + ")");
}

std::string argument_entry(const OptionReference& argument) {
  const std::string values = argument.value->values.empty() ? "" : " " + argument.value->shown;
  return entry(argument.names.front() + values + (argument.repeats ? " ..." : ""), description(argument, {}));
}

std::string option_entries(const VerbReference& verb, bool all) {
  std::set<std::string> shown;
  for (const OptionReference& option : verb.options) {
    if (all || option.is_basic) shown.insert(option.names.begin(), option.names.end());
  }
  std::string text;
  for (const OptionGroup& group : groups_of(verb)) {
    std::string entries;
    for (const OptionReference* option : group.options) {
      if (all || option->is_basic) entries += entry(synopsis(*option, ","), description(*option, shown));
    }
    if (!entries.empty()) text += "\n" + group.title + ":\n" + entries;
  }
  return text;
}

// Where there is more to read.
std::string further_help(const VerbReference& verb) {
  const std::string command = "dynslice " + verb.name + (verb.name.empty() ? "" : " ");
  if (!verb.verbs.empty()) {
    return "\nRun `" + command + "VERB --help` for a verb's main options, `" + command +
           "VERB --help-all` for all of them.\n";
  }
  const auto hidden = std::count_if(verb.options.begin(), verb.options.end(),
                                    [](const OptionReference& option) { return !option.is_basic; });
  if (hidden == 0) return "";
  return "\nRun `" + command + "--help-all` to see " + std::to_string(hidden) + " more option" +
         (hidden == 1 ? "" : "s") + ".\n";
}

// The verb, with `all` the verbs below it too.
std::string sections(const VerbReference& verb, bool all) {
  std::string text = wrapped(verb.summary, 0) + "Usage: " + usage(verb) + "\n";
  if (!verb.positionals.empty()) text += "\nArguments:\n";
  for (const OptionReference& argument : verb.positionals) text += argument_entry(argument);
  text += option_entries(verb, all);
  if (!verb.verbs.empty()) text += "\nVerbs:\n";
  for (const VerbReference& below : verb.verbs) text += entry(last_word(below), below.summary);
  if (!all) return text;
  for (const VerbReference& below : verb.verbs) text += "\n" + sections(below, true);
  return text;
}

class HelpFormat final : public CLI::FormatterBase {
 public:
  std::string make_help(const CLI::App* app, std::string, CLI::AppFormatMode mode) const override {
    return help_text(describe_command_line(*app), mode == CLI::AppFormatMode::All);
  }
};

}  // namespace

std::string help_text(const VerbReference& verb, bool all) {
  return sections(verb, all) + "\n" + kExitCodesInShort + (all ? "" : further_help(verb));
}

void set_help_format(CLI::App& app) {
  app.formatter(std::make_shared<HelpFormat>());
  app.set_help_flag("-h,--help", "print the main options and exit")->group(basic(Group::kHelp));
  app.set_help_all_flag("--help-all", "print all options and exit")->group(basic(Group::kHelp));
  for (CLI::App* verb : app.get_subcommands([](CLI::App*) { return true; })) set_help_format(*verb);
}

}  // namespace dynslice::cli
