// What plans are made with, whichever allocator makes them.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "dynslice/jobs/planning.h"
#include "dynslice/jobs/sizes.h"
#include "dynslice/plan/allocate.h"

namespace dynslice {

// The slicing base of lr: the one that was given, or a share of the average.
double base_of(const PlanningRequest& options, double average);

AllocateOptions allocate_options(const PlanningRequest& options, double average, double base);

// Of any layer, that measured curves, averages and trials are sought up to.
double largest_ratio(const PlanningRequest& options);

// The plan that an allocator makes at an average.
using PlanAt = std::function<SlicePlan(double average)>;

SlicePlan plan_of_ratios(const PlanningRequest& options, const ModelConfig& config, std::vector<double> ratios,
                         double average, double base);

// The share of the target's quantity (params, bytes, flops) that a plan removes.
double share_removed(SizeQuantity quantity, const SlicePlan& plan, const PlanningRequest& options,
                     const Checkpoint& checkpoint);

// The average that was asked for, or the one that reaches the target with the plans that `plan_at` makes.
double average_of(const PlanningRequest& options, const Checkpoint& checkpoint, const PlanAt& plan_at);

// Out of --scores, or by a walk.
LayerScores obtain_scores(const PlanningInputs& inputs);

// Layer redundancies out of lr or bi scores.
std::vector<double> redundancies(const LayerScores& scores, const PlanningRequest& options, const ModelConfig& config);

// By `lr` or `softmax`.
SlicePlan plan_by_scores(const PlanningInputs& inputs, const std::vector<double>& redundancy, Allocator allocator,
                         double average, double base);

// By what removing neurons and heads, or directions of the stream, costs every layer (plan_by_curves.cpp).
Planned plan_by_curves(const PlanningInputs& inputs);

}  // namespace dynslice
