// What the verbs that measure can be asked for: every choice is a row. Nothing here needs LibTorch.
#pragma once

#include <array>

#include "dynslice/support/choices.h"

namespace dynslice {

// Which tokens of a window are scored.
enum class PerplexityProtocol { kFull, kLlamaCpp };
inline constexpr std::array kPerplexityProtocols = {
    Choice{PerplexityProtocol::kFull, "full", "all but the first, as papers do"},
    Choice{PerplexityProtocol::kLlamaCpp, "llamacpp",
           "the second half, with BOS in front where the tokenizer adds it, as llama-perplexity does"}};
constexpr const auto& choices(PerplexityProtocol) { return kPerplexityProtocols; }

}  // namespace dynslice
