#include "dynslice/jobs/compare.h"

#include <iostream>

#include "cli/show/outcome.h"
#include "cli/show/terminal.h"
#include "cli/verbs/verbs.h"
#include "dynslice/jobs/inputs.h"
#include "dynslice/tensor/dtype.h"

namespace dynslice::cli {

void run(const CompareRequest& request, TerminalProgress& progress) {
  present(dynslice::run(request, progress), request.common, [](const CompareResult& result) {
    print_table(result.table.header, result.table.rows);
    std::cout << "\n"
              << result.explanation << "\n"
              << dtype_name(result.compute.dtype) << " on " << result.compute.device.str() << ", "
              << format_duration(result.seconds) << ", peak memory " << format_bytes(result.peak.rss) << ".\n";
  });
}

}  // namespace dynslice::cli
