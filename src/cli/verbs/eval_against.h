// `dynslice eval --against MODEL`: what a model says beside what another one does, token by token.
#pragma once

#include "cli/inputs.h"
#include "cli/options/options.h"
#include "cli/show/terminal.h"
#include "dynslice/support/json.h"

namespace dynslice::cli {

// Ids mean nothing to a model of another vocabulary. Whether two vocabularies are one shows in what becomes of the
// text, which is `checkpoint`'s. Throws kUsage when the reference's tokenizer makes other tokens of it.
void check_same_tokens(const Checkpoint& reference, const Checkpoint& checkpoint, const LoadedText& text);

// Perplexity of both models, and their divergence. `json` is what the tasks gave, when there were any. Throws kUsage
// when the models have not the same tokens.
void run_against(const EvalOptions& options, TerminalProgress& progress, OrderedJson json);

}  // namespace dynslice::cli
