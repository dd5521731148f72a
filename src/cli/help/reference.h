// The command line described as data, read from its CLI11 definitions: what help, shell completions, man page and
// docs/options.md are made of, so that a new verb or option appears in all of them by being defined.
//
// What a value looks like is the option's CLI11 type name, alternatives separated by '|': words in lower case are
// values that can be completed ("auto|cpu|cuda|cuda:N" has three), FILE, FOLDER and MODEL stand for paths, anything
// else in capitals is free. Values of CLI::IsMember count as well. `option_text` replaces what is shown.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace dynslice::cli {

enum class PathKind { kNone, kFile, kFolder, kModel };  // kModel: a folder or a .gguf file

struct ValueReference {
  std::string shown;                // "FILE", "lr|constant"
  std::vector<std::string> values;  // that can be completed
  PathKind path = PathKind::kNone;  // what paths may stand there besides
};

struct OptionReference {
  std::vector<std::string> names;  // {"-o", "--output"}, short ones first; the one name of a positional argument
  bool positional = false;
  std::optional<ValueReference> value;  // none for a flag
  std::string help;
  std::string default_text;  // empty when there is none to tell
  bool required = false;
  bool repeats = false;               // takes any number of values
  std::vector<std::string> excludes;  // names of options that cannot stand beside it
  // Those of them that its description names: of two options, the one that excludes more names the other, else the
  // later one, so that every exclusion is told once.
  std::vector<std::string> told_excludes;
  std::string group;     // title; of positional arguments none
  bool is_basic = true;  // shown by --help
};

struct VerbReference {
  std::string name;  // as typed, with the verbs before it: "score", "depth drop"; empty for the program itself
  std::string summary;
  std::vector<OptionReference> positionals;
  std::vector<OptionReference> options;  // group by group, in each the basic ones first
  std::vector<VerbReference> verbs;      // below it
};

// Hidden verbs and options (of an empty group) are left out.
VerbReference describe_command_line(const CLI::App& app);

struct OptionGroup {
  std::string title;
  std::vector<const OptionReference*> options;
};
std::vector<OptionGroup> groups_of(const VerbReference& verb);

// "dynslice score [MODEL] [OPTIONS]"
std::string usage(const VerbReference& verb);

// The verb and all verbs below it, depth first.
std::vector<const VerbReference*> all_verbs(const VerbReference& top);

// The last word of its name.
std::string last_word(const VerbReference& verb);

// The beginning of a help text, for lists where a line must do.
std::string brief(const std::string& help);

// "-o,--output FILE", the names separated by `separator`.
std::string synopsis(const OptionReference& option, const std::string& separator);

struct Explained {
  const char* name;
  const char* meaning;
};
extern const std::vector<Explained> kExitCodes;
extern const std::vector<Explained> kEnvironment;

std::string bash_completion(const VerbReference& program);
std::string zsh_completion(const VerbReference& program);
std::string fish_completion(const VerbReference& program);
std::string man_page(const VerbReference& program);
std::string markdown_options(const VerbReference& program);  // docs/options.md

// The verbs that print the above.
struct ReferenceOptions {
  std::string shell;   // completion
  std::string format;  // reference, a hidden verb
};
void define_reference(CLI::App& app, ReferenceOptions& options);
// What they print, when one of them was given.
std::optional<std::string> reference_text(const CLI::App& app, const ReferenceOptions& options);

// What --help prints, the basic options, and with `all` what --help-all prints, in lines that fit a terminal. With
// `all` the verbs below it follow.
std::string help_text(const VerbReference& verb, bool all);
// Gives every verb --help and --help-all, which print the above.
void set_help_format(CLI::App& app);

}  // namespace dynslice::cli
