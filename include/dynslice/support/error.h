// The one exception type of the library. Every failure a user can cause or meet is an Error whose
// message is one line: what is wrong, where (file, key, tensor), and how to mend it.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace dynslice {

// The value is the exit code of the command line program.
enum class ErrorKind : int {
  kUsage = 2,           // an option or argument that cannot be
  kBadInput = 3,        // a file whose content is not what it must be
  kMissingData = 4,     // a file, data set or network resource that is not there
  kOutOfResources = 5,  // memory or disk
  kInterrupted = 130,   // Ctrl-C
};

class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}
  [[nodiscard]] ErrorKind kind() const { return kind_; }
  [[nodiscard]] int exit_code() const { return static_cast<int>(kind_); }

 private:
  ErrorKind kind_;
};

// Joins the parts into the message: throw_error(ErrorKind::kUsage, "ratio ", r, " is above ", limit).
template <typename... Parts>
[[noreturn]] void throw_error(ErrorKind kind, const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw Error(kind, message.str());
}

}  // namespace dynslice
