// What the program says on standard error: messages, and the status line of a terminal, which is drawn again and again.
// Both go through here, so that neither tears the other. spdlog writes the messages; only log.cpp knows it.
#pragma once

#include <string>

namespace dynslice::cli {

struct LogOptions {
  bool quiet = false;    // show no notices and no warnings
  bool verbose = false;  // show messages of the debug level
  std::string file;      // to which every message is appended, whatever is shown; empty: none
  std::string heading;   // the first line that goes there
};

// Sends the library's log to standard error, and with time and level to the file. Colours are for terminals alone, and
// for none where NO_COLOR is set or TERM is "dumb". Throws kOutOfResources for a file that cannot be written.
void install_log(const LogOptions& options);

// Shows "dynslice: MESSAGE", whatever the options are.
void report_error(const std::string& message);

// While it lives, messages other than errors are dropped.
class MutedLog {
 public:
  MutedLog();
  ~MutedLog();
  MutedLog(const MutedLog&) = delete;
  MutedLog& operator=(const MutedLog&) = delete;
};

// Draws the status line, in the place of the one before. Messages are printed above it. For terminals alone.
void draw_status(const std::string& line);
// Draws it for the last time, and ends it.
void finish_status(const std::string& line);

}  // namespace dynslice::cli
