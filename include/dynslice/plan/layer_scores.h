// One number a layer that says how important the layer is, with where it came from. A JSON artefact: readable,
// editable, re-usable.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "dynslice/support/json.h"

namespace dynslice {

enum class MoreImportant { kLow, kHigh };

struct LayerScores {
  std::string metric;  // "lr", "bi", "lim", "angular", "window:3", "cka", "zd"
  MoreImportant more_important = MoreImportant::kLow;
  std::vector<double> values;                      // one per layer; for window:n one per start, num_layers - n + 1
  int64_t tokens = 0;                              // that were scored; 0 of zd, which needs none
  int64_t skipped_tokens = 0;                      // token-layer pairs left out because a norm was 0
  std::vector<std::vector<double>> matrix;         // of every pair of layers, for metrics that have one (cka)
  OrderedJson provenance = OrderedJson::object();  // model, text, options, versions
};

// All layers, the least important first; of equally important ones the higher (later) layer comes first. For window:n
// "layers" are starts of windows.
[[nodiscard]] std::vector<int64_t> by_importance(const LayerScores& scores);

[[nodiscard]] OrderedJson to_json(const LayerScores& scores);

// Reads a score file. Throws kBadInput naming file and key for anything else, NaN and Inf included.
[[nodiscard]] LayerScores read_scores(const std::filesystem::path& path);

}  // namespace dynslice
