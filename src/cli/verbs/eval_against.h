// `dynslice eval --against MODEL`: what a model says beside what another one does, token by token.
#pragma once

#include "cli/options/options.h"
#include "cli/show/terminal.h"
#include "dynslice/jobs/inputs.h"
#include "dynslice/support/json.h"

namespace dynslice::cli {

// Perplexity of both models, and their divergence. `json` is what the tasks gave, when there were any. Throws kUsage
// when the models have not the same tokens.
void run_against(const EvalRequest& options, TerminalProgress& progress, OrderedJson json);

}  // namespace dynslice::cli
