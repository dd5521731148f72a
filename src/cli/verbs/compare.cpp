#include "dynslice/jobs/compare.h"

#include "cli/show/outcome.h"
#include "cli/show/terminal.h"
#include "cli/verbs/verbs.h"
#include "dynslice/jobs/inputs.h"
#include "dynslice/tensor/dtype.h"

namespace dynslice::cli {

void run(const CompareRequest& request, TerminalProgress& progress, std::ostream& out) {
  present(out, dynslice::run(request, progress), request.common, [&](const CompareResult& result) {
    print_table(out, result.table.header, result.table.rows);
    out << "\n"
        << result.explanation << "\n"
        << dtype_name(result.compute.dtype) << " on " << result.compute.device.str() << ", "
        << format_duration(result.seconds) << ", peak memory " << format_bytes(result.peak.rss) << ".\n";
  });
}

}  // namespace dynslice::cli
