#include "dynslice/jobs/plan.h"

#include "cli/show/outcome.h"
#include "cli/show/plan.h"
#include "cli/verbs/verbs.h"

namespace dynslice::cli {

void run(const PlanRequest& request, TerminalProgress& progress, std::ostream& out) {
  present(out, dynslice::run(request, progress), request.common, [&](const PlanResult& result) {
    print_plan(out, result.plan, result.scores, result.sizes);
    if (!request.output.empty())
      out << "Written to " << request.output << "; slice by it with --plan " << request.output << ".\n";
  });
}

}  // namespace dynslice::cli
