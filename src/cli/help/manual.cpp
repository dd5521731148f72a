// The man page and docs/options.md.
#include <CLI/CLI.hpp>

#include "cli/help/reference.h"
#include "cli/options/groups.h"

namespace dynslice::cli {
namespace {

using CLI::detail::find_and_replace;
using CLI::detail::join;

std::string sentence(const std::string& text) { return text + (text.ends_with('.') ? "" : "."); }

std::string more_than_help(const OptionReference& option) {
  return option.told_excludes.empty() ? "" : "Not together with " + join(option.told_excludes, ", ") + ".";
}

// --help and --help-all, which every verb has, are told with the program itself.
bool is_told_once(const VerbReference& verb, const OptionGroup& group) {
  return !verb.name.empty() && group.title == title_of(Group::kHelp);
}

// ---- markdown

std::string markdown_cell(std::string text) {
  for (const char* special : {"|", "<", ">", "*"}) text = find_and_replace(text, special, std::string("\\") + special);
  return text;
}

std::string markdown_code(const std::string& text) { return "`" + find_and_replace(text, "|", "\\|") + "`"; }

std::string markdown_row(const OptionReference& option) {
  std::string what = option.positional ? option.names.front() : synopsis(option, ", ");
  if (option.positional && !option.value->values.empty()) what += " (" + option.value->shown + ")";
  std::string meaning = markdown_cell(option.help);
  if (!more_than_help(option).empty()) meaning += ". " + more_than_help(option);
  const std::string default_text = option.required ? "required" : markdown_cell(option.default_text);
  return "| " + markdown_code(what) + " | " + meaning + " | " + default_text + (default_text.empty() ? "|\n" : " |\n");
}

// A table for the arguments, and one for each group of options.
std::string markdown_tables(const VerbReference& verb) {
  const auto head = [](const std::string& title) { return "\n| " + title + " | meaning | default |\n|---|---|---|\n"; };
  std::string text = verb.positionals.empty() ? "" : head("Arguments");
  for (const OptionReference& argument : verb.positionals) text += markdown_row(argument);
  for (const OptionGroup& group : groups_of(verb)) {
    if (is_told_once(verb, group)) continue;
    text += head(group.title);
    for (const OptionReference* option : group.options) text += markdown_row(*option);
  }
  return text;
}

std::string markdown_verb(const VerbReference& verb) {
  return "\n## " + verb.name + "\n\n" + sentence(verb.summary) + "\n\n    " + usage(verb) + "\n" +
         markdown_tables(verb);
}

std::string markdown_list(const std::string& title, const std::string& column, const std::vector<Explained>& entries) {
  std::string text = "\n## " + title + "\n\n| " + column + " | meaning |\n|---|---|\n";
  for (const Explained& entry : entries) {
    text += "| `" + find_and_replace(entry.name, ", ", "`, `") + "` | " + markdown_cell(entry.meaning) + " |\n";
  }
  return text;
}

// ---- man

std::string man_text(std::string text) {
  text = find_and_replace(text, "\\", "\\e");
  for (const auto& [plain, troff] : {std::pair{"-", "\\-"}, {"~", "\\(ti"}, {"^", "\\(ha"}, {"`", "\\(ga"}}) {
    text = find_and_replace(text, plain, troff);
  }
  return text.starts_with('.') || text.starts_with('\'') ? "\\&" + text : text;
}

std::string man_bold(const std::string& text) { return "\\fB" + man_text(text) + "\\fR"; }
std::string man_italic(const std::string& text) { return "\\fI" + man_text(text) + "\\fR"; }

std::string man_item(const std::string& term, const std::string& text) { return ".TP\n" + term + "\n" + text + "\n"; }

std::string man_option(const OptionReference& option) {
  std::vector<std::string> names;
  for (const std::string& name : option.names) names.push_back(option.positional ? man_italic(name) : man_bold(name));
  std::string term = join(names, ", ");
  if (option.value && (!option.positional || !option.value->values.empty())) {
    term += " " + man_italic(option.value->shown) + (option.repeats ? " ..." : "");
  }
  std::string text = option.help;
  if (!option.default_text.empty()) text += " (default: " + option.default_text + ")";
  return man_item(term,
                  man_text(sentence(text) + (more_than_help(option).empty() ? "" : " " + more_than_help(option))));
}

std::string man_options(const VerbReference& verb) {
  std::string text;
  for (const OptionReference& argument : verb.positionals) text += man_option(argument);
  for (const OptionGroup& group : groups_of(verb)) {
    if (is_told_once(verb, group)) continue;
    if (!verb.name.empty()) text += ".PP\n" + man_text(group.title) + ":\n";
    for (const OptionReference* option : group.options) text += man_option(*option);
  }
  return text;
}

std::string man_verb(const VerbReference& verb) {
  return ".SS " + man_text(usage(verb)) + "\n" + man_text(sentence(verb.summary)) + "\n" + man_options(verb);
}

std::string man_list(const std::vector<Explained>& entries) {
  std::string text;
  for (const Explained& entry : entries) text += man_item(man_bold(entry.name), man_text(sentence(entry.meaning)));
  return text;
}

constexpr const char* kManBegin = R"(.\" Made from the program's own definitions by `dynslice reference man`.
.TH DYNSLICE 1 "" "dynslice @VERSION@" "User Commands"
.SH NAME
dynslice \- make large language models smaller
.SH SYNOPSIS
.B dynslice
.I VERB
.RI [ MODEL ]
.RI [ OPTIONS ]
.br
.B dynslice \-\-version
.SH DESCRIPTION
)";

constexpr const char* kManExamples = R"(.SH EXAMPLES
.EX
dynslice score ./my\-model \-o scores.json
dynslice slice ./my\-model \-\-avg 25% \-\-scores scores.json \-o smaller
dynslice eval smaller \-\-ppl wikitext2
dynslice run configs/merge\-then\-slice.json ./my\-model \-o both
.EE
)";

}  // namespace

std::string markdown_options(const VerbReference& program) {
  std::string text =
      "# Every verb and option\n\n"
      "<!-- Made from src/cli/ by tools/update_docs.sh. Do not edit: change the definitions and run it again. -->\n\n"
      "`dynslice VERB --help-all` and the man page say the same. `dynslice VERB --help` shows the main options, which "
      "come\n"
      "first in each table. What verbs print and write is in [cli.md](cli.md).\n";
  text += markdown_tables(program) + "\n| verb | does |\n|---|---|\n";
  const std::vector<const VerbReference*> verbs = all_verbs(program);
  for (const VerbReference* verb : verbs) {
    if (!verb->name.empty()) {
      text += "| [`" + verb->name + "`](#" + find_and_replace(verb->name, " ", "-") + ") | " +
              markdown_cell(verb->summary) + " |\n";
    }
  }
  for (const VerbReference* verb : verbs) {
    if (!verb->name.empty()) text += markdown_verb(*verb);
  }
  return text + markdown_list("Exit codes", "code", kExitCodes) +
         markdown_list("Environment", "variable", kEnvironment);
}

std::string man_page(const VerbReference& program) {
  std::string text = find_and_replace(kManBegin, "@VERSION@", DYNSLICE_VERSION);
  text += man_text(program.summary) + "\n.SH OPTIONS\nThe first two are options of every verb too.\n" +
          man_options(program) + ".SH VERBS\n";
  for (const VerbReference* verb : all_verbs(program)) {
    if (!verb->name.empty()) text += man_verb(*verb);
  }
  return text + ".SH EXIT STATUS\n" + man_list(kExitCodes) + ".SH ENVIRONMENT\n" + man_list(kEnvironment) +
         kManExamples;
}

}  // namespace dynslice::cli
