// From options to what --method modular works with.
#pragma once

#include <vector>

#include "dynslice/jobs/planning.h"
#include "dynslice/modular/modular.h"

namespace dynslice {

// What --method modular asks for.
ModularOptions modular_options(const ModularChoices& given);

// What the loss says of the layers, where the options ask for that; measured on the calibration text's first windows
// when it is first needed. All arguments must outlive it.
SensitivitySource sensitivity_source(const PlanningRequest& options, const Checkpoint& checkpoint,
                                     const ComputeOptions& compute, Calibration& calibration, Journal* journal,
                                     ProgressSink& progress);
// The text that it is measured on, none where it is not.
TextAmount gradient_text(const PlanningRequest& options, Calibration& calibration);

// What layers give up together, `average` being the share of all their weights that may go; heads are empty when none
// may.
struct GivenUp {
  std::vector<double> ratios;  // of the MLPs
  std::vector<HeadCount> heads;
};
GivenUp give_up(const std::vector<LayerCurves>& curves, const ModelConfig& config, double average);

// The same with as many neurons, and heads, in every layer (in those that had as many): of the numbers of heads that
// all can have, the one that costs the loss least.
// A share that is beyond the most is that.
GivenUp give_up_alike(const std::vector<LayerCurves>& curves, const ModelConfig& config, double average);
// The most that layers can give up so.
double most_alike(const std::vector<LayerCurves>& curves, const ModelConfig& config);

// What the plan is expected to cost every layer, in nats a token.
OrderedJson losses_of(const std::vector<LayerCurves>& curves, const SlicePlan& plan);

}  // namespace dynslice
