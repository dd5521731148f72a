// The definition of the command line: every verb, option and help text.
#pragma once

#include <variant>

#include "cli/options.h"

namespace dynslice::cli {

// The command to run, or the exit code when there is nothing to run (help was printed, or a usage error was).
std::variant<Command, int> parse_command_line(int argc, char** argv);

}  // namespace dynslice::cli
