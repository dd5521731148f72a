// dynslice quantize --sweep: the share of layers at low bits against perplexity, for several orders of the layers.
#pragma once

#include "cli/options/options.h"
#include "cli/show/terminal.h"

namespace dynslice::cli {

void run_sweep(const QuantizeRequest& options, TerminalProgress& progress);

}  // namespace dynslice::cli
