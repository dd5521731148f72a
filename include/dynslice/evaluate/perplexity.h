// Perplexity on windows of text.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "dynslice/evaluate/choices.h"
#include "dynslice/walk/journal.h"
#include "dynslice/walk/layer_walk.h"

namespace dynslice {

// Place in a window of `length` tokens of the first one that is scored.
int64_t first_scored_token(PerplexityProtocol protocol, int64_t length);

struct PerplexityOptions {
  PerplexityProtocol protocol = PerplexityProtocol::kFull;
  // Put in the place of every window's first token: llama-perplexity does so for models that begin with BOS.
  std::optional<int32_t> first_token;
  // Bytes that the residual stream of the windows walked together may take; more windows are walked in turns, each of
  // which reads the weights again. 0: a quarter of the weights' size, at least 256 MiB, at most a quarter of the
  // memory that is free.
  int64_t stream_bytes = 0;
  JournalPhase journal = {};  // keeps the losses of finished turns, and the stream between layers
};

struct Perplexity {
  double value = 0;           // exp of the mean loss of the scored tokens
  double mean_loss = 0;       // in nats
  double standard_error = 0;  // of `value`, from the variance of the tokens' losses, as llama-perplexity has it
  int64_t windows = 0;
  int64_t tokens = 0;  // windows * seqlen: what went through the model
  int64_t scored_tokens = 0;
  int64_t seqlen = 0;
  std::vector<double> window_losses;  // mean loss of each window's scored tokens, in nats
  double seconds = 0;                 // those of the runs that this one resumed included
  [[nodiscard]] double tokens_per_second() const { return seconds > 0 ? static_cast<double>(tokens) / seconds : 0; }
};

// Throws kUsage for windows of fewer than 2 tokens (4 for llamacpp) or longer than the model's maximum.
[[nodiscard]] Perplexity measure_perplexity(const Checkpoint& checkpoint, const ComputeOptions& compute,
                                            TokenWindows windows, const PerplexityOptions& options,
                                            ProgressSink& progress);

}  // namespace dynslice
