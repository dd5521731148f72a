// What tasks gave, as a table.
#pragma once

#include <ostream>

#include "dynslice/jobs/eval.h"

namespace dynslice::cli {

void print_tasks(std::ostream& out, const TaskEvaluation& tasks);

}  // namespace dynslice::cli
