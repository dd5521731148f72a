// What the verbs that train can be asked for: every choice is a row. Nothing here needs LibTorch.
#pragma once

#include <array>

#include "dynslice/support/choices.h"

namespace dynslice {

// What of the forward is kept for the way back.
enum class KeptActivations { kAuto, kAll, kStreams };
inline constexpr std::array kKeptActivations = {
    Choice{KeptActivations::kAuto, "auto", "all where it fits into a quarter of the memory"},
    Choice{KeptActivations::kAll, "all", "everything"},
    Choice{KeptActivations::kStreams, "streams",
           "the streams between layers alone, from which the rest is computed again (activation checkpointing)"}};
constexpr const auto& choices(KeptActivations) { return kKeptActivations; }

}  // namespace dynslice
