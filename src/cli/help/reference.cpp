#include "cli/help/reference.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cctype>
#include <string_view>
#include <tuple>

#include "cli/options/groups.h"

namespace dynslice::cli {
namespace {

bool has_capital(const std::string& text) {
  return std::any_of(text.begin(), text.end(), [](unsigned char c) { return std::isupper(c) != 0; });
}

std::vector<std::string> validator_texts(const CLI::Option& option) {
  // CLI11 gives validators of options that may be changed only, and tells their number by throwing.
  auto& changeable = const_cast<CLI::Option&>(option);
  std::vector<std::string> texts;
  try {
    for (int i = 0;; ++i) texts.push_back(changeable.get_validator(i)->get_description());
  } catch (const CLI::OptionNotFound&) {
    return texts;
  }
}

// The type name that the option was given, which CLI11 shows with what its validators say.
std::string own_type_name(const CLI::Option& option, const std::vector<std::string>& validators) {
  std::string name = option.get_type_name();
  size_t added = 0;
  for (const std::string& text : validators) added += text.empty() ? 0 : text.size() + 1;
  name.resize(name.size() - std::min(added, name.size()));
  if (name == "INT" || name == "UINT") return "N";
  if (name == "FLOAT") return "X";
  return name;
}

ValueReference describe_value(const CLI::Option& option) {
  const std::vector<std::string> validators = validator_texts(option);
  ValueReference value;
  value.shown = own_type_name(option, validators);
  for (const std::string& text : validators) {  // CLI::IsMember's: "{lr,constant}"
    if (text.size() > 2 && text.front() == '{' && text.back() == '}') {
      value.shown = CLI::detail::join(CLI::detail::split(text.substr(1, text.size() - 2), ','), "|");
    }
  }
  for (const std::string& word : CLI::detail::split(value.shown, '|')) {
    // TEXT is CLI11's own for strings: nothing was said, and a file is what shells offer then.
    if (word == "FILE" || word == "TEXT") value.path = PathKind::kFile;
    if (word == "FOLDER") value.path = PathKind::kFolder;
    if (word == "MODEL") value.path = PathKind::kModel;
    if (!word.empty() && !has_capital(word)) value.values.push_back(word);
  }
  if (!option.get_option_text().empty()) value.shown = option.get_option_text();
  return value;
}

std::string longest_name(const CLI::Option& option) {
  if (!option.get_lnames().empty()) return "--" + option.get_lnames().front();
  return option.get_snames().empty() ? option.get_name(true, false) : "-" + option.get_snames().front();
}

// Moves a default that the help text ends with, "(default 8)" or "(default: 8)", to where defaults belong.
void split_default(OptionReference& option) {
  static constexpr std::string_view kMark = " (default";
  const size_t mark = option.help.rfind(kMark);
  if (mark == std::string::npos || !option.help.ends_with(')') || !option.default_text.empty()) return;
  const size_t begin = option.help.find_first_not_of(": ", mark + kMark.size());
  option.default_text = option.help.substr(begin, option.help.size() - 1 - begin);
  option.help.resize(mark);
}

OptionReference describe_option(const CLI::Option& option) {
  OptionReference reference;
  reference.positional = option.get_positional() && !option.nonpositional();
  if (reference.positional) {
    reference.names = {option.get_name(true, false)};
  } else {
    for (const std::string& name : option.get_snames()) reference.names.push_back("-" + name);
    for (const std::string& name : option.get_lnames()) reference.names.push_back("--" + name);
    const auto place = place_of(option.get_group());
    reference.group = place ? title_of(place->group) : "Options";
    reference.is_basic = !place || place->is_basic;
  }
  if (option.get_type_size() != 0 && option.get_items_expected_max() != 0) reference.value = describe_value(option);
  reference.help = option.get_description();
  if (reference.value) reference.default_text = option.get_default_str();
  split_default(reference);
  reference.required = option.get_required();
  reference.repeats = option.get_expected_max() >= CLI::detail::expected_max_vector_size;
  for (const CLI::Option* other : option.get_excludes()) reference.excludes.push_back(longest_name(*other));
  std::sort(reference.excludes.begin(), reference.excludes.end());
  return reference;
}

void tell_excludes_once(std::vector<OptionReference>& options) {
  for (size_t i = 0; i < options.size(); ++i) {
    for (const std::string& name : options[i].excludes) {
      const auto other = std::find_if(options.begin(), options.end(), [&](const OptionReference& option) {
        return std::find(option.names.begin(), option.names.end(), name) != option.names.end();
      });
      if (other == options.end()) continue;
      const auto rank = [&](size_t index) { return std::pair(options[index].excludes.size(), index); };
      if (rank(i) > rank(static_cast<size_t>(other - options.begin()))) options[i].told_excludes.push_back(name);
    }
  }
}

// In the order in which they are shown; options of no group come last.
std::vector<const CLI::Option*> shown_options(const CLI::App& app) {
  std::vector<const CLI::Option*> options =
      app.get_options([](const CLI::Option* option) { return !option->get_group().empty(); });
  const auto rank = [](const CLI::Option* option) {
    const auto place = place_of(option->get_group());
    return std::tuple(!place, place ? place->group : Group::kWhat, place && !place->is_basic);
  };
  std::stable_sort(options.begin(), options.end(),
                   [&](const CLI::Option* one, const CLI::Option* other) { return rank(one) < rank(other); });
  return options;
}

VerbReference describe_verb(const CLI::App& app, const std::string& name) {
  VerbReference verb;
  verb.name = name;
  verb.summary = app.get_description();
  for (const CLI::Option* option : shown_options(app)) {
    OptionReference reference = describe_option(*option);
    (reference.positional ? verb.positionals : verb.options).push_back(std::move(reference));
  }
  tell_excludes_once(verb.options);
  for (const CLI::App* below : app.get_subcommands([](const CLI::App*) { return true; })) {
    if (below->get_group().empty() || below->get_name().empty()) continue;
    verb.verbs.push_back(describe_verb(*below, name + (name.empty() ? "" : " ") + below->get_name()));
  }
  return verb;
}

// "depth drop"; the program itself has no name.
std::string full_name(const CLI::App& app) {
  if (app.get_parent() == nullptr) return "";
  const std::string above = full_name(*app.get_parent());
  return above + (above.empty() ? "" : " ") + app.get_name();
}

void collect(const VerbReference& verb, std::vector<const VerbReference*>& verbs) {
  verbs.push_back(&verb);
  for (const VerbReference& below : verb.verbs) collect(below, verbs);
}

}  // namespace

const std::vector<Explained> kExitCodes = {
    {"0", "done"},
    {"1", "a defect of dynslice: please report it"},
    {"2", "wrong usage"},
    {"3", "a bad input file; the message says which file, and which key or tensor"},
    {"4", "missing data or network"},
    {"5", "out of memory or disk"},
    {"130", "interrupted"}};

const std::vector<Explained> kEnvironment = {
    {"DYNSLICE_MODEL", "the model when none is given"},
    {"DYNSLICE_DATA_DIR", "folder of data sets, such as wikitext-2-raw/wiki.test.raw and piqa/valid.jsonl"},
    {"DYNSLICE_DATASETS_SERVER",
     "URL of the server that tasks' data come from; else $HF_ENDPOINT's with datasets-server. in front of the host"},
    {"DYNSLICE_CACHE", "folder of downloads; else $XDG_CACHE_HOME/dynslice, else ~/.cache/dynslice"},
    {"DYNSLICE_GEMM",
     "mkl or onednn, the library for fp32 products on the CPU; else MKL on Intel processors and oneDNN elsewhere"},
    {"DYNSLICE_JOURNAL",
     "every: keep a journal at every layer boundary, whatever it costs (for tests); off: none; else as often as costs "
     "little"},
    {"DYNSLICE_STOP_AFTER",
     "N or PHASE:N: the run kills itself after the N-th save of its journal, or of that phase; with :data or :state "
     "behind it within that save, with :INT or :TERM by that signal (for tests)"},
    {"NO_COLOR", "anything: no colours on a terminal"},
    {"HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE", "as in huggingface_hub, whose cache is shared"},
};

VerbReference describe_command_line(const CLI::App& app) { return describe_verb(app, full_name(app)); }

std::vector<OptionGroup> groups_of(const VerbReference& verb) {
  std::vector<OptionGroup> groups;
  for (const OptionReference& option : verb.options) {
    if (groups.empty() || groups.back().title != option.group) groups.push_back({option.group, {}});
    groups.back().options.push_back(&option);
  }
  return groups;
}

std::string usage(const VerbReference& verb) {
  std::string text = "dynslice" + (verb.name.empty() ? "" : " " + verb.name) + (verb.verbs.empty() ? "" : " VERB");
  for (const OptionReference& argument : verb.positionals) {
    const std::string name = argument.names.front() + (argument.repeats ? "..." : "");
    text += " " + (argument.required ? name : "[" + name + "]");
  }
  return text + " [OPTIONS]";
}

std::vector<const VerbReference*> all_verbs(const VerbReference& top) {
  std::vector<const VerbReference*> verbs;
  collect(top, verbs);
  return verbs;
}

std::string last_word(const VerbReference& verb) { return verb.name.substr(verb.name.rfind(' ') + 1); }

std::string brief(const std::string& help) {
  return help.substr(0, std::min({help.find(": "), help.find("; "), help.find(" ("), help.find(". ")}));
}

std::string synopsis(const OptionReference& option, const std::string& separator) {
  std::string text = CLI::detail::join(option.names, separator);
  if (option.value && !option.positional) text += " " + option.value->shown + (option.repeats ? " ..." : "");
  return text;
}

void define_reference(CLI::App& app, ReferenceOptions& options) {
  CLI::App* completion = app.add_subcommand("completion", "Print the script that completes command lines in a shell");
  completion->add_option("SHELL", options.shell, "the shell; docs/install.md says where its scripts belong")
      ->required()
      ->check(CLI::IsMember(std::vector<std::string>{"bash", "zsh", "fish"}));
  CLI::App* reference = app.add_subcommand("reference", "Print the man page, or docs/options.md");
  reference->group("");
  reference->add_option("FORMAT", options.format, "what to print")
      ->required()
      ->check(CLI::IsMember(std::vector<std::string>{"man", "markdown"}));
}

std::optional<std::string> reference_text(const CLI::App& app, const ReferenceOptions& options) {
  if (!app.got_subcommand("completion") && !app.got_subcommand("reference")) return std::nullopt;
  const VerbReference program = describe_command_line(app);
  if (options.shell == "bash") return bash_completion(program);
  if (options.shell == "zsh") return zsh_completion(program);
  if (options.shell == "fish") return fish_completion(program);
  return options.format == "man" ? man_page(program) : markdown_options(program);
}

}  // namespace dynslice::cli
