// One row of a task's data, read and checked.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "dynslice/evaluate/tasks.h"

namespace dynslice {

// The prompt is `text` and the choices follow it; or, of winogrande, every choice makes a `contexts` of its own, and
// `target` follows each; or, of a cloze task, `target` follows `text`.
struct TaskDocument {
  std::string id;  // empty when the row has none
  std::string text;
  std::vector<std::string> contexts;
  std::vector<std::string> choices;
  std::string target;
  int64_t gold = 0;
};

// Throws kBadInput, naming file and line, for a row without what the format needs.
TaskDocument read_document(TaskFormat format, const DataRow& row);

}  // namespace dynslice
