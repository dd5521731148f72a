// What `depth` can be asked for: every choice is a row. Nothing here needs LibTorch.
#pragma once

#include <array>
#include <string_view>

#include "dynslice/support/choices.h"

namespace dynslice {

enum class DropOrder { kInfluence, kPerplexity };
inline constexpr std::array kDropOrders = {
    Choice{DropOrder::kInfluence, "bi", "those of the lowest block influence (ShortGPT)"},
    Choice{DropOrder::kPerplexity, "ppl",
           "one at a time the one without which perplexity on the calibration text is lowest, all measured again each "
           "time (SLEB)"}};
constexpr const auto& choices(DropOrder) { return kDropOrders; }

// How consecutive layers become one (SLM, arXiv 2502.19159, section 3): kSum is θ_low + Σ_k (θ_k - θ_low), the paper's,
// low being the lowest of them; kLast is what the authors' code comes to, which overwrites the running sum.
enum class MergeRule { kSum, kMean, kLast };
inline constexpr std::array kMergeRules = {
    Choice{MergeRule::kSum, "sum", "the lowest plus all differences from it, as in the paper"},
    Choice{MergeRule::kMean, "mean", "the mean of all"},
    Choice{MergeRule::kLast, "last", "the highest alone, which is what the authors' code comes to"}};
constexpr const auto& choices(MergeRule) { return kMergeRules; }

// How the layers that go are found.
enum class WindowChoice { kLoss, kCosine };
inline constexpr std::array kWindowChoices = {
    Choice{
        WindowChoice::kLoss, "search",
        "every window is tried on held-out calibration text, repaired unless --replace is none, ffn or swiglu, and the "
        "lowest loss wins"},
    Choice{WindowChoice::kCosine, "cosine", "where the streams before and after are most alike (LLM-Streamline)"}};
constexpr const auto& choices(WindowChoice) { return kWindowChoices; }

// What stands for layers that went.
enum class ReplacementKind { kNone, kLinear, kLinearStream, kLayer, kFfn, kSwiglu };
struct ReplacementRow {
  ReplacementKind value;
  std::string_view name, meaning;
  bool is_repaired = false;  // by a map that is fitted; a layer's training begins with it
  bool is_trained = false;
  bool is_mlp_alone = false;  // takes the place of the layer in front too
};
inline constexpr std::array kReplacements = {
    ReplacementRow{.value = ReplacementKind::kNone, .name = "none", .meaning = "nothing"},
    ReplacementRow{.value = ReplacementKind::kLinear,
                   .name = "linear",
                   .meaning = "a least-squares map of what the MLP before them adds, folded into its weights, so that "
                              "the model stays an ordinary one",
                   .is_repaired = true},
    ReplacementRow{.value = ReplacementKind::kLinearStream,
                   .name = "linear-stream",
                   .meaning = "a map of the whole stream, which is better and takes a matrix that needs dynslice's "
                              "modeling code",
                   .is_repaired = true},
    ReplacementRow{.value = ReplacementKind::kLayer,
                   .name = "layer",
                   .meaning = "the layer in front of them, with that map in it, trained to do their work",
                   .is_repaired = true,
                   .is_trained = true},
    ReplacementRow{.value = ReplacementKind::kFfn,
                   .name = "ffn",
                   .meaning = "a trained MLP without gate in the place of them and of the layer in front, which starts "
                              "as no change of the stream",
                   .is_trained = true,
                   .is_mlp_alone = true},
    ReplacementRow{.value = ReplacementKind::kSwiglu,
                   .name = "swiglu",
                   .meaning = "the same with a gated MLP, which starts as that layer's",
                   .is_trained = true,
                   .is_mlp_alone = true}};
constexpr const auto& choices(ReplacementKind) { return kReplacements; }

// What a trained replacement learns.
enum class ReplacementLoss { kLanguageModel, kStream };
inline constexpr std::array kReplacementLosses = {
    Choice{ReplacementLoss::kLanguageModel, "lm", "the next token, with the layers behind it and the head as they are"},
    Choice{ReplacementLoss::kStream, "mse", "the stream that the original model has behind the layers that went"}};
constexpr const auto& choices(ReplacementLoss) { return kReplacementLosses; }

// Number format of the streams that it is trained on.
enum class StreamFormat { kFp32, kBf16 };
inline constexpr std::array kStreamFormats = {Choice{StreamFormat::kFp32, "fp32", ""},
                                              Choice{StreamFormat::kBf16, "bf16", ""}};
constexpr const auto& choices(StreamFormat) { return kStreamFormats; }

}  // namespace dynslice
