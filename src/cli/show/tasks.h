// What tasks gave, as a table.
#pragma once

#include "dynslice/jobs/eval.h"

namespace dynslice::cli {

void print_tasks(const TaskEvaluation& tasks);

}  // namespace dynslice::cli
