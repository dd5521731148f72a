// The definition of the command line: every verb, option and help text.
#pragma once

#include <string>
#include <variant>
#include <vector>

#include "cli/help/reference.h"
#include "cli/options/options.h"

namespace dynslice::cli {

// The command to run, or the exit code when there is nothing to run (help was printed, or a usage error was).
std::variant<Command, int> parse_command_line(int argc, char** argv);

// The command that these words are, the first of which is the program's name. Throws kUsage.
Command parse_words(const std::vector<std::string>& words);

// All verbs and options, as data.
VerbReference describe_program();

}  // namespace dynslice::cli
