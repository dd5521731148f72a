// The losses of many quantized models in one walk: every layer is quantized once for all of them, and models that agree
// up to a layer share their stream up to there.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "dynslice/quantize/gptq.h"
#include "dynslice/quantize/quantize.h"
#include "dynslice/walk/journal.h"
#include "dynslice/walk/layer_walk.h"

namespace dynslice {

// How the layers of trial models are quantized. With `calibration` by GPTQ, fitted to what the matrices read in the
// model as it is (not, as quantize_by_gptq does, behind quantized layers: then each plan would need its own); else
// rounded to nearest. `format_at` gives the format of `bits` for rows of so many columns; bits of 0 leave a layer as it
// is.
struct TrialQuantizer {
  std::function<QuantFormat(int bits, int64_t columns)> format_at;
  const TokenWindows* calibration = nullptr;
  GptqOptions gptq = {};
  // Receives every matrix at every level that a plan has for its layer, when it is there.
  std::function<void(int bits, const MatrixRows& rows)> sink = {};
};

// Mean negative log-likelihood (nats a token) on `windows` of the models that `plans` (bits of every layer) make. Needs
// one residual stream a plan at most, and one of the calibration text. The journal keeps the streams between layers.
std::vector<double> plan_losses(const LayerWalk& walk, const TokenWindows& windows, const TrialQuantizer& quantizer,
                                const std::vector<std::vector<int>>& plans, const JournalPhase& journal = {});

// Greedy search of a plan: from the highest level for all layers, layer after layer goes to its next level where the
// loss on `windows` rises least for the bits that it saves, until `average` bits are reached. All losses are measured
// anew `rounds` times on the way.
struct SearchStep {
  int64_t layer = 0;
  int bits = 0;          // from now on
  double loss_rise = 0;  // nats a token, when it was last measured
};
struct SearchResult {
  std::vector<int> bits;
  std::vector<SearchStep> steps;
};
[[nodiscard]] SearchResult search_plan(const LayerWalk& walk, const TokenWindows& windows,
                                       const TrialQuantizer& quantizer, const std::vector<int>& levels, double average,
                                       int64_t rounds,
                                       const std::function<JournalPhase(const std::string& name)>& phase);

}  // namespace dynslice
