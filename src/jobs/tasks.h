// The tasks that a request names.
#pragma once

#include <string>

#include "dynslice/evaluate/tasks.h"

namespace dynslice {

// The tasks of a list of names with commas between them, as --tasks takes it. Throws kUsage.
TaskSelection tasks_named(const std::string& list);

}  // namespace dynslice
