#include "dynslice/support/log.h"

#include <utility>

namespace dynslice {
namespace {

LogHandler& handler() {
  static LogHandler current;
  return current;
}

}  // namespace

void set_log_handler(LogHandler replacement) { handler() = std::move(replacement); }

void log(LogLevel level, const std::string& message) {
  if (handler()) handler()(level, message);
}

}  // namespace dynslice
