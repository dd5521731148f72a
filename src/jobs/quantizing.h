// From options to a quantization plan and its formats: what `quantize` and its sweep share.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "dynslice/jobs/inputs.h"
#include "dynslice/jobs/requests.h"
#include "dynslice/plan/layer_scores.h"
#include "dynslice/quantize/plan_losses.h"
#include "dynslice/quantize/quant_plan.h"
#include "dynslice/quantize/quantize.h"
#include "dynslice/score/score.h"
#include "dynslice/walk/journal.h"
#include "dynslice/walk/layer_walk.h"

namespace dynslice {

// Where the order of the layers comes from.
struct Ranking {
  std::optional<Metric> metric;
  std::string file;  // of scores
  bool is_random = false;
  bool is_searched = false;
  bool is_reversed = false;
  bool needs_text() const { return is_searched || (metric && metric->needs_text()); }
};

// What --order says. Throws kUsage for a name that is neither a file nor known.
Ranking parse_ranking(const std::string& order);

// What a run has in its hands once the inputs are read.
struct Quantizing {
  const QuantizeRequest& options;
  const ComputeOptions& compute;
  const Checkpoint& checkpoint;
  const TokenWindows* calibration = nullptr;  // null when neither order nor method needs text
  const TokenWindows* held_out = nullptr;     // of --order search

  const ModelConfig& config() const { return checkpoint.config(); }
  bool by_gptq() const { return options.method == QuantizeMethod::kGptq; }
  at::ScalarType dtype() const;  // of what is written
  GptqOptions gptq() const { return {options.damping, !options.natural_order}; }
};

std::vector<int> levels_of(const QuantizeRequest& options);
// Whether layers get different bits, so that an order is needed.
bool needs_order(const QuantizeRequest& options);
// Throws kUsage when shares, average and levels do not go together.
void check_levels(const QuantizeRequest& options);

// The format of `bits` for rows of so many columns. Throws kUsage when a matrix of the model does not fit.
using FormatRule = std::function<QuantFormat(int bits, int64_t columns)>;
FormatRule format_rule(const Quantizing& in);
FormatOf formats_of(const FormatRule& rule, const QuantPlan& plan);

using PhaseOf = std::function<JournalPhase(const std::string& name)>;

// The type of blocks of that name ("q4_k"). Throws kUsage, naming `option`, for another.
GgmlType parse_block_type(const std::string& option, const std::string& name);

// The layers, the least important first, and the scores that say so.
struct Order {
  std::vector<int64_t> layers;
  std::optional<LayerScores> scores;
};
Order rank_layers(const Quantizing& in, const Ranking& ranking, uint64_t seed, const JournalPhase& phase,
                  ProgressSink& progress);

struct QuantPlanned {
  QuantPlan plan;
  std::optional<LayerScores> scores;  // that it was made from
};
QuantPlanned make_quant_plan(const Quantizing& in, const Ranking& ranking, const FormatRule& rule, const PhaseOf& phase,
                             ProgressSink& progress);

}  // namespace dynslice
