// The metrics of `score`: every one is a row. Nothing here needs LibTorch.
#pragma once

#include <array>
#include <string_view>

#include "dynslice/support/choices.h"

namespace dynslice {

enum class MetricKind {
  kLayerRedundancy,  // mean over tokens of cos(x_i, x_{i+1}) (DynamicSlicing, arXiv 2411.03513)
  kBlockInfluence,   // 1 - lr (ShortGPT, arXiv 2403.03853)
  kLim,              // -cos(x_i, x_{i+1}), mean over tokens (LayerwiseQuant, arXiv 2406.17415)
  kAngular,          // mean of arccos(cos) / pi (Gromov et al., arXiv 2403.17887)
  kCka,              // linear CKA of x_i and x_{i+1}, and the matrix of all layers' outputs (SLM, arXiv 2502.19159)
  kWindow,           // "window:n": mean cos(x_i, x_{i+n}) (LLM-Streamline, arXiv 2403.19135)
  kZScores,          // share of weights more than σ above the mean of their layer (LayerwiseQuant)
};

struct MetricRow {
  MetricKind value;
  std::string_view name, meaning;
  bool high_is_important = false;  // else low is
  bool needs_text = true;
  bool has_window = false;  // is typed as NAME:N
};
inline constexpr std::array kMetrics = {
    MetricRow{.value = MetricKind::kLayerRedundancy,
              .name = "lr",
              .meaning = "mean cosine of a layer's input and output (low is important)"},
    MetricRow{.value = MetricKind::kBlockInfluence, .name = "bi", .meaning = "1 - lr", .high_is_important = true},
    MetricRow{
        .value = MetricKind::kLim, .name = "lim", .meaning = "-cosine (LayerwiseQuant)", .high_is_important = true},
    MetricRow{
        .value = MetricKind::kAngular, .name = "angular", .meaning = "arccos(cosine) / pi", .high_is_important = true},
    MetricRow{.value = MetricKind::kCka,
              .name = "cka",
              .meaning = "linear CKA of input and output, and of all pairs of layers"},
    MetricRow{.value = MetricKind::kZScores,
              .name = "zd",
              .meaning = "share of the layer's weights more than a standard deviation above their mean (low is "
                         "important), which needs no text",
              .needs_text = false},
    MetricRow{.value = MetricKind::kWindow,
              .name = "window",
              .meaning = "cosine across N layers, for every start",
              .has_window = true}};
constexpr const auto& choices(MetricKind) { return kMetrics; }

}  // namespace dynslice
