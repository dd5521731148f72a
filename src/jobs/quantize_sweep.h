// dynslice quantize --sweep: the share of layers at low bits against perplexity, for several orders of the layers.
#pragma once

#include "dynslice/jobs/quantize.h"

namespace dynslice {

// For a request that is checked as far as it is one of any quantization.
Outcome<QuantizeResult> run_sweep(const QuantizeRequest& options, ProgressSink& progress);

}  // namespace dynslice
