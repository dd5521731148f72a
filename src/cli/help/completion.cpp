// The scripts that complete command lines. Each is whole in itself: it holds the verbs, options and values, and
// neither runs dynslice nor needs another completion package.
#include <CLI/CLI.hpp>

#include "cli/help/completion_scripts.h"
#include "cli/help/reference.h"
#include "cli/options/groups.h"

namespace dynslice::cli {
namespace {

using CLI::detail::find_and_replace;
using CLI::detail::join;

const char* path_word(PathKind path) {
  switch (path) {
    case PathKind::kFile:
      return "file";
    case PathKind::kFolder:
      return "folder";
    case PathKind::kModel:
      return "model";
    case PathKind::kNone:
      break;
  }
  return "none";
}

std::string sh_quote(const std::string& text) { return "'" + find_and_replace(text, "'", "'\\''") + "'"; }

bool takes_value(const OptionReference& option) { return option.value.has_value(); }

// ---- bash

// 'score:-o'|'score:--output': the labels of one option, or of the n-th argument.
std::string bash_labels(const VerbReference& verb, const std::vector<std::string>& names) {
  std::vector<std::string> labels;
  for (const std::string& name : names) labels.push_back(sh_quote(verb.name + ":" + name));
  return join(labels, "|");
}

std::string bash_value_case(const VerbReference& verb, const std::vector<std::string>& names,
                            const ValueReference& value) {
  return "    " + bash_labels(verb, names) + ") path=" + path_word(value.path) +
         " values=" + sh_quote(join(value.values, " ")) + " ;;\n";
}

std::string bash_values(const VerbReference& program) {
  std::string cases;
  for (const VerbReference* verb : all_verbs(program)) {
    for (const OptionReference& option : verb->options) {
      if (takes_value(option)) cases += bash_value_case(*verb, option.names, *option.value);
    }
    for (size_t i = 0; i < verb->positionals.size(); ++i) {
      const OptionReference& argument = verb->positionals[i];
      const std::string position = argument.repeats ? "*" : std::to_string(i + 1);
      cases += argument.repeats
                   ? "    " + sh_quote(verb->name + ":") + position + ") path=" + path_word(argument.value->path) +
                         " values=" + sh_quote(join(argument.value->values, " ")) + " ;;\n"
                   : bash_value_case(*verb, {position}, *argument.value);
    }
  }
  return cases;
}

std::string bash_words(const VerbReference& program, bool options) {
  std::string cases;
  for (const VerbReference* verb : all_verbs(program)) {
    std::vector<std::string> words;
    if (options) {
      for (const OptionReference& option : verb->options)
        words.insert(words.end(), option.names.begin(), option.names.end());
    } else {
      for (const VerbReference& below : verb->verbs) words.push_back(last_word(below));
    }
    if (!words.empty()) cases += "    " + sh_quote(verb->name) + ") words=" + sh_quote(join(words, " ")) + " ;;\n";
  }
  return cases;
}

std::string bash_function(const std::string& name, const std::string& subject, const std::string& locals,
                          const std::string& cases) {
  return "\n" + name + "() {\n  " + locals + "\n  case " + subject + " in\n" + cases +
         "    *) return 1 ;;\n  esac\n}\n";
}

// ---- zsh

// What stands between the brackets of a specification, or the colons of a list.
std::string zsh_text(std::string text) {
  for (const char* special : {"\\", "[", "]", ":"}) text = find_and_replace(text, special, std::string("\\") + special);
  return text;
}

std::string zsh_action(const ValueReference& value) {
  std::vector<std::string> words = {" _dynslice_values", path_word(value.path)};
  for (const std::string& word : value.values) words.push_back(find_and_replace(word, ":", "\\:"));
  return join(words, " ");
}

std::string zsh_value(const OptionReference& option) {
  const std::string shown = zsh_text(option.positional ? option.names.front() : option.value->shown);
  return ":" + shown + ":" + zsh_action(*option.value);
}

std::string zsh_option(const OptionReference& option) {
  std::vector<std::string> excluded = option.excludes;
  if (!option.repeats) excluded.insert(excluded.end(), option.names.begin(), option.names.end());
  const bool ends = option.group == title_of(Group::kHelp);  // the program prints something and ends
  const std::string exclusions = ends ? "(- *)" : excluded.empty() ? "" : "(" + join(excluded, " ") + ")";
  const std::string rest = "[" + zsh_text(brief(option.help)) + "]" + (option.value ? zsh_value(option) : "");
  std::string specifications;
  for (const std::string& name : option.names) {
    const std::string form = !option.value ? name : name.starts_with("--") ? name + "=" : name + "+";
    specifications += " \\\n    " + sh_quote(exclusions + form + rest);
  }
  return specifications;
}

std::string zsh_function_name(const VerbReference& verb) {
  return "_dynslice" +
         (verb.name.empty() ? "" : "_" + find_and_replace(find_and_replace(verb.name, " ", "_"), "-", "_"));
}

std::string zsh_function(const VerbReference& verb) {
  std::string text = "\n" + zsh_function_name(verb) + "() {\n";
  if (verb.verbs.empty()) {
    text += "  _arguments -s -S";
  } else {
    text += "  local curcontext=$curcontext state line\n  typeset -A opt_args\n  _arguments -C -s -S";
  }
  for (const OptionReference& option : verb.options) text += zsh_option(option);
  for (size_t i = 0; i < verb.positionals.size(); ++i) {
    const OptionReference& argument = verb.positionals[i];
    const std::string place = argument.repeats ? "*" : std::to_string(i + 1) + (argument.required ? "" : ":");
    text += " \\\n    " + sh_quote(place + zsh_value(argument));
  }
  if (verb.verbs.empty()) return text + "\n}\n";
  text +=
      " \\\n    '1:verb:->verb' '*::argument:->rest' && return\n  case $state in\n    verb)\n      local -a verbs=(\n";
  for (const VerbReference& below : verb.verbs) {
    text += "        " + sh_quote(zsh_text(last_word(below)) + ":" + zsh_text(below.summary)) + "\n";
  }
  text += "      )\n      _describe -t verbs verb verbs\n      ;;\n    rest)\n      case $words[1] in\n";
  for (const VerbReference& below : verb.verbs) {
    text += "        " + last_word(below) + ") " + zsh_function_name(below) + " ;;\n";
  }
  return text + "      esac\n      ;;\n  esac\n}\n";
}

// ---- fish

std::string fish_quote(const std::string& text) {
  return "'" + find_and_replace(find_and_replace(text, "\\", "\\\\"), "'", "\\'") + "'";
}

std::string fish_value(const ValueReference& value) {
  std::string words = join(value.values, " ");
  if (value.path == PathKind::kFolder)
    words += (words.empty() ? "" : " ") + std::string("(__fish_complete_directories)");
  std::string text = value.path == PathKind::kFile || value.path == PathKind::kModel ? " -F" : " -f";
  if (!words.empty()) text += " -a " + fish_quote(words);
  return text;
}

std::string fish_lines(const VerbReference& verb) {
  const std::string begin = "complete -c dynslice -n " + fish_quote("__dynslice_at " + fish_quote(verb.name));
  std::string text;
  for (const VerbReference& below : verb.verbs) {
    text += begin + " -f -a " + fish_quote(last_word(below)) + " -d " + fish_quote(below.summary) + "\n";
  }
  for (const OptionReference& argument : verb.positionals) text += begin + fish_value(*argument.value) + "\n";
  for (const OptionReference& option : verb.options) {
    text += begin;
    for (const std::string& name : option.names) {
      text += name.starts_with("--") ? " -l " + name.substr(2) : " -s " + name.substr(1);
    }
    if (option.value) text += " -r" + fish_value(*option.value);
    text += " -d " + fish_quote(brief(option.help)) + "\n";
  }
  return text;
}

}  // namespace

std::string bash_completion(const VerbReference& program) {
  return "# bash completion for dynslice: printed by `dynslice completion bash`.\n" +
         bash_function("_dynslice_value", "$1", "path='' values=''", bash_values(program)) +
         bash_function("_dynslice_verbs", "$1", "words=''", bash_words(program, false)) +
         bash_function("_dynslice_options", "$1", "words=''", bash_words(program, true)) + "\n" +
         std::string(kBashScript);
}

std::string zsh_completion(const VerbReference& program) {
  std::string text = "#compdef dynslice\n# zsh completion for dynslice: printed by `dynslice completion zsh`.\n";
  for (const VerbReference* verb : all_verbs(program)) text += zsh_function(*verb);
  return text + "\n" + std::string(kZshScript);
}

std::string fish_completion(const VerbReference& program) {
  std::vector<std::string> names;
  std::vector<std::string> verbs;
  for (const VerbReference* verb : all_verbs(program)) {
    if (!verb->name.empty()) verbs.push_back(fish_quote(verb->name));
    for (const OptionReference& option : verb->options) {
      for (const std::string& name : option.names) {
        if (takes_value(option) && std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
      }
    }
  }
  std::string text = find_and_replace(std::string(kFishScript), "OPTIONS_WITH_A_VALUE", join(names, " "));
  text = find_and_replace(text, "VERBS", join(verbs, " "));
  for (const VerbReference* verb : all_verbs(program)) text += fish_lines(*verb);
  return text;
}

}  // namespace dynslice::cli
