#include "dynslice/jobs/slice.h"

#include "cli/show/outcome.h"
#include "cli/show/plan.h"
#include "cli/show/written.h"
#include "cli/verbs/verbs.h"
#include "dynslice/tensor/dtype.h"

namespace dynslice::cli {
namespace {

void print_arithmetic(std::ostream& out, const SliceArithmetic& arithmetic) {
  out << format_fixed(arithmetic.flops / 1e12, 1) << " TFLOP at "
      << format_fixed(arithmetic.flops / arithmetic.seconds / 1e9, 0) << " GFLOP/s, "
      << format_fixed(100 * arithmetic.share_of_peak, 0)
      << " % of what this machine reaches in matrix products alone.\n";
}

}  // namespace

void run(const SliceRequest& request, TerminalProgress& progress, std::ostream& out) {
  present(out, dynslice::run(request, progress), request.common, [&](const SliceJobResult& result) {
    print_plan(out, result.plan, result.scores, result.sizes);
    out << "Calibrated on " << result.calibration.windows << " windows of " << result.calibration.length
        << " tokens in " << dtype_name(result.dtype) << " on " << result.device.str() << "; "
        << format_duration(result.seconds) << ", peak memory " << format_bytes(result.peak.rss) << ".\n";
    if (result.arithmetic) print_arithmetic(out, *result.arithmetic);
    print_written(out, request.common, result.output);
  });
}

}  // namespace dynslice::cli
