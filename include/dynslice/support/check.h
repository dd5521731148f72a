// Invariants: what holds whatever users, files and the network bring, unless a caller in the code is wrong.
#pragma once

#include <sstream>
#include <stdexcept>

namespace dynslice {

// Joins the parts into the message of a std::logic_error.
template <typename... Parts>
[[noreturn]] void throw_broken_invariant(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::logic_error(message.str());
}

}  // namespace dynslice

// Throws std::logic_error unless the condition holds: DYNSLICE_CHECK(rows <= all, "rows outside of tensor ", name).
#define DYNSLICE_CHECK(condition, ...)                 \
  do {                                                 \
    if (!(condition)) [[unlikely]]                     \
      ::dynslice::throw_broken_invariant(__VA_ARGS__); \
  } while (false)
