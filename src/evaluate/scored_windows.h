// What every measurement of next-token losses shares: which tokens are scored, how many windows are walked together,
// and the figures that come of the losses.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "dynslice/evaluate/perplexity.h"

namespace dynslice {

// Throws kUsage for windows that are too short for the protocol or too long for the model.
void check_windows(const TokenWindows& windows, const ModelConfig& config, PerplexityProtocol protocol);

// Puts the protocol's first token into every window, when it has one.
void replace_first_tokens(TokenWindows& windows, const PerplexityOptions& options);

// Windows walked together: whole chunks of them where there is room, so that how many does not change the arithmetic.
int64_t windows_per_turn(int64_t bytes_per_window, int64_t stream_bytes, int64_t length, int64_t chunk_tokens);

// The scored ones of values of next tokens, [windows, T - 1] to [windows, scored].
at::Tensor scored(const at::Tensor& values, const TokenWindows& windows, PerplexityProtocol protocol);

// Of scored losses, fp64 [windows, scored]; without the seconds.
Perplexity perplexity_of(const at::Tensor& losses, const TokenWindows& windows);

}  // namespace dynslice
