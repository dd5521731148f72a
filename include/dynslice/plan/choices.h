// What `plan` and `slice` can be asked for: every choice is a row. Nothing here needs LibTorch.
#pragma once

#include <array>
#include <string_view>

#include "dynslice/support/choices.h"

namespace dynslice {

enum class WidthMethod { kSlice, kModular };
inline constexpr std::array kWidthMethods = {
    Choice{WidthMethod::kSlice, "slice", "the residual stream, by rotation and slicing (SliceGPT)"},
    Choice{
        WidthMethod::kModular, "modular",
        "neurons inside the MLPs and attention heads, the others being refitted (MoDeGPT), which at equal parameters "
        "costs far less perplexity, and with --allocate constant gives an ordinary model that every runtime loads"}};
constexpr const auto& choices(WidthMethod) { return kWidthMethods; }

// Of WidthMethod::kSlice: what shares a rotation.
enum class BasisScope { kBlock, kLayer, kGlobal };
inline constexpr std::array kBasisScopes = {
    Choice{BasisScope::kBlock, "block", "every half layer's stream has its own (SliceGPT)"},
    Choice{BasisScope::kLayer, "layer",
           "the streams in front of a layer's attention and of its MLP have one, which needs matrices on half as many "
           "residual paths"},
    Choice{BasisScope::kGlobal, "global",
           "all streams have one, and one width, which gives an ordinary model that every runtime loads"}};
constexpr const auto& choices(BasisScope) { return kBasisScopes; }

// Of BasisScope::kGlobal: which directions of the streams stay.
enum class DirectionChoice { kEnergy, kPlaces, kLoss };
inline constexpr std::array kDirectionChoices = {
    Choice{DirectionChoice::kEnergy, "energy", "those with most of the normalized streams' energy"},
    Choice{DirectionChoice::kPlaces, "places", "the same, places weighed by what the loss says of errors there"},
    Choice{DirectionChoice::kLoss, "loss",
           "those that carry energy and matter to the loss, by the second moment of its gradients"}};
constexpr const auto& choices(DirectionChoice) { return kDirectionChoices; }

// How an average is shared out among the layers.
enum class Allocator { kLr, kConstant, kSoftmax, kSpectrum, kLoss, kUniform, kBlend, kSearch };
struct AllocatorRow {
  Allocator value;
  std::string_view name, meaning;
  bool reads_scores = false;   // of the layers, lr or bi
  bool reads_losses = false;   // what neurons, heads or directions cost the loss, by its gradients
  bool reads_epsilon = false;  // the temperature of softmax
  bool walks = false;          // through the calibration text, beside the scoring
  bool is_of_modular = true;
  bool is_of_slice = true;
};
inline constexpr std::array kAllocators = {
    AllocatorRow{
        .value = Allocator::kLr, .name = "lr", .meaning = "more where layers are redundant", .reads_scores = true},
    AllocatorRow{.value = Allocator::kConstant, .name = "constant", .meaning = "the same everywhere"},
    AllocatorRow{.value = Allocator::kSoftmax,
                 .name = "softmax",
                 .meaning = "more where layers change the stream less (MoDeGPT)",
                 .reads_scores = true,
                 .reads_epsilon = true},
    AllocatorRow{.value = Allocator::kSpectrum,
                 .name = "spectrum",
                 .meaning =
                     "more where the stream has little energy in its least directions and layers change it less; of "
                     "--method slice",
                 .reads_scores = true,
                 .walks = true,
                 .is_of_modular = false},
    AllocatorRow{.value = Allocator::kLoss,
                 .name = "loss",
                 .meaning = "by what a layer's neurons, heads or directions cost the loss",
                 .reads_losses = true,
                 .walks = true},
    AllocatorRow{.value = Allocator::kUniform,
                 .name = "uniform",
                 .meaning =
                     "by the loss, with as many heads and neurons in every layer, an ordinary model that every runtime "
                     "loads; of --method modular",
                 .reads_losses = true,
                 .walks = true,
                 .is_of_slice = false},
    AllocatorRow{.value = Allocator::kBlend,
                 .name = "blend",
                 .meaning = "halfway between loss and softmax",
                 .reads_scores = true,
                 .reads_losses = true,
                 .reads_epsilon = true,
                 .walks = true},
    AllocatorRow{
        .value = Allocator::kSearch,
        .name = "search",
        .meaning = "start from the best of loss, softmax, lr and blend, then improve it by trials on held-out text",
        .reads_scores = true,
        .reads_losses = true,
        .reads_epsilon = true,
        .walks = true}};
constexpr const auto& choices(Allocator) { return kAllocators; }

enum class PlanPreset { kBest, kPaper };
inline constexpr std::array kPlanPresets = {
    Choice{
        PlanPreset::kBest, "best",
        "what loses least at a given size, which is --method modular with more text, 128 windows (or as many as there "
        "are) and gradients of 16"},
    Choice{PlanPreset::kPaper, "paper",
           "DynamicSlicing's own dimensions (last layer scored after the final norm, no cap, --round-to 1)"}};
constexpr const auto& choices(PlanPreset) { return kPlanPresets; }

// Which matrices are refitted by least squares; what each means depends on the method.
enum class Refit { kNone, kDense, kSelf, kAll };
inline constexpr std::array kRefits = {Choice{Refit::kNone, "none", ""}, Choice{Refit::kDense, "dense", ""},
                                       Choice{Refit::kSelf, "self", ""}, Choice{Refit::kAll, "all", ""}};
constexpr const auto& choices(Refit) { return kRefits; }

// Of WidthMethod::kModular.
enum class NeuronChoice { kLoss, kLeverage };
inline constexpr std::array kNeuronChoices = {
    Choice{NeuronChoice::kLoss, "loss",
           "those that cost the loss least when the others are refitted (optimal brain surgeon)"},
    Choice{NeuronChoice::kLeverage, "leverage", "those with the smallest ridge leverage scores (MoDeGPT)"}};
constexpr const auto& choices(NeuronChoice) { return kNeuronChoices; }

enum class AttentionChoice { kHeads, kKeep };
inline constexpr std::array kAttentionChoices = {
    Choice{AttentionChoice::kHeads, "heads", "heads, where that costs less than neurons"},
    Choice{AttentionChoice::kKeep, "keep", "nothing"}};
constexpr const auto& choices(AttentionChoice) { return kAttentionChoices; }

enum class TokenWeights { kNorm, kAlike };
inline constexpr std::array kTokenWeights = {
    Choice{TokenWeights::kNorm, "norm", "by the inverse square of their stream's norm"},
    Choice{TokenWeights::kAlike, "alike", "the same"}};
constexpr const auto& choices(TokenWeights) { return kTokenWeights; }

// What a size target is a share of.
enum class SizeQuantity { kParams, kBytes, kFlops };
inline constexpr std::array kSizeQuantities = {Choice{SizeQuantity::kParams, "params", "parameters"},
                                               Choice{SizeQuantity::kBytes, "bytes", "bytes"},
                                               Choice{SizeQuantity::kFlops, "flops", "multiply-adds a token"}};
constexpr const auto& choices(SizeQuantity) { return kSizeQuantities; }

}  // namespace dynslice
