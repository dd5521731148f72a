// `dynslice eval --against MODEL`: what a model says beside what another one does, token by token.
#pragma once

#include "cli/options.h"
#include "cli/terminal.h"

namespace dynslice::cli {

// Perplexity of both models, and their divergence. Throws kUsage when they have not the same tokens.
void run_against(const EvalOptions& options, TerminalProgress& progress);

}  // namespace dynslice::cli
