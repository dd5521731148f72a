// The library's log: notices that are not errors ("3 tokens with norm 0 left out"). Silent until a
// program installs a handler; the command line program sends it to stderr.
#pragma once

#include <functional>
#include <string>

namespace dynslice {

enum class LogLevel { kDebug, kInfo, kWarning };

using LogHandler = std::function<void(LogLevel, const std::string&)>;

// Replaces the handler; an empty one silences the log. Not to be called while the library works.
void set_log_handler(LogHandler handler);

void log(LogLevel level, const std::string& message);

}  // namespace dynslice
