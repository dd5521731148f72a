// The library's one exception type as a value.
#pragma once

#include <optional>

#include "dynslice/support/error.h"

namespace dynslice {

// The Error that `action` throws, if it throws one.
template <typename Action>
std::optional<Error> error_of(Action action) {
  try {
    action();
  } catch (const Error& error) {
    return error;
  }
  return std::nullopt;
}

}  // namespace dynslice
