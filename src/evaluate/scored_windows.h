// What every measurement of next-token losses shares: which tokens are scored, how many windows are walked together,
// and the figures that come of the losses.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

#include "dynslice/evaluate/perplexity.h"
#include "dynslice/evaluate/statistics.h"

namespace dynslice {

// Throws kUsage for windows that are too short for the protocol or too long for the model.
void check_windows(const TokenWindows& windows, const ModelConfig& config, PerplexityProtocol protocol);

// Puts the protocol's first token into every window, when it has one.
void replace_first_tokens(TokenWindows& windows, const PerplexityOptions& options);

// Windows walked together: whole chunks of them where there is room, so that how many does not change the arithmetic.
int64_t windows_per_turn(int64_t bytes_per_window, int64_t stream_bytes, int64_t length, int64_t chunk_tokens);

// The windows of one turn, and what stands behind the name of its work when there are more: " (part 2 of 5)".
struct WindowTurn {
  TokenWindows windows;
  std::string suffix;
};
WindowTurn turn_of(const TokenWindows& all, int64_t turn, int64_t per_turn);

// The scored ones of values of next tokens, [windows, T - 1] to [windows, scored].
at::Tensor scored(const at::Tensor& values, const TokenWindows& windows, PerplexityProtocol protocol);

// Mean and its standard error, of values in fp64.
Estimate mean_of(const at::Tensor& values);

// Of scored losses, fp64 [windows, scored]; without the seconds.
Perplexity perplexity_of(const at::Tensor& losses, const TokenWindows& windows);

}  // namespace dynslice
