#include "dynslice/jobs/plan.h"

#include <iostream>

#include "cli/show/outcome.h"
#include "cli/show/plan.h"
#include "cli/verbs/verbs.h"

namespace dynslice::cli {

void run(const PlanRequest& request, TerminalProgress& progress) {
  present(dynslice::run(request, progress), request.common, [&](const PlanResult& result) {
    print_plan(result.plan, result.scores, result.sizes);
    if (!request.output.empty())
      std::cout << "Written to " << request.output << "; slice by it with --plan " << request.output << ".\n";
  });
}

}  // namespace dynslice::cli
