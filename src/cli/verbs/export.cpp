#include "dynslice/jobs/export.h"

#include "cli/show/outcome.h"
#include "cli/verbs/verbs.h"

namespace dynslice::cli {

void run(const ExportRequest& request, TerminalProgress& progress, std::ostream& out) {
  present(out, dynslice::run(request, progress), request.common, [&](const ExportResult& result) {
    out << "Written to " << result.output.string() << ": " << result.file.architecture << ", " << result.file.tensors
        << " tensors, " << format_bytes(result.file.bytes) << " (" << result.type << "), "
        << format_duration(result.seconds) << ", peak memory " << format_bytes(result.peak.rss) << ".\n";
  });
}

}  // namespace dynslice::cli
