// From options to a slice plan: what `plan` and `slice` share.
#pragma once

#include <optional>

#include "dynslice/jobs/inputs.h"
#include "dynslice/jobs/requests.h"
#include "dynslice/jobs/sizes.h"
#include "dynslice/modular/modular.h"
#include "dynslice/plan/layer_scores.h"
#include "dynslice/plan/slice_plan.h"
#include "dynslice/resources/estimate.h"
#include "dynslice/slice/slice.h"
#include "dynslice/walk/journal.h"

namespace dynslice {

// The calibration text, loaded when it is first asked for: not every plan needs one.
class Calibration {
 public:
  Calibration(const PlanningRequest& options, const Checkpoint& checkpoint, ProgressSink& progress)
      : options_(options), checkpoint_(checkpoint), progress_(progress) {}
  const LoadedText& text();
  [[nodiscard]] bool is_loaded() const { return text_.has_value(); }

 private:
  const PlanningRequest& options_;
  const Checkpoint& checkpoint_;
  ProgressSink& progress_;
  std::optional<LoadedText> text_;
};

struct Planned {
  SlicePlan plan;
  std::optional<LayerScores> scores;  // that the plan was made from
};

// What a plan is made from. `journal` may be null; it keeps scores, losses and trials.
struct PlanningInputs {
  const PlanningRequest& options;
  const Checkpoint& checkpoint;
  const ComputeOptions& compute;
  Calibration& calibration;
  SensitivitySource& sensitivity;
  Journal* journal;
  ProgressSink& progress;
};

// Refuses options that cannot be, before any work.
void check_planning(const PlanningRequest& options, const Checkpoint& checkpoint);
// Lets the options be those of a plan that was given; refuses such as its method and basis have no use for.
void adopt_plan(PlanningRequest& options, const SlicePlan& plan, const Checkpoint& checkpoint);
// Whether a plan must be worked out by walks over the layers.
[[nodiscard]] bool must_walk(const PlanningRequest& options);

// What is refitted behind a rotation.
[[nodiscard]] RotationRefitOptions rotation_refit(const PlanningRequest& options);

// A phase of the journal, which may be null.
[[nodiscard]] JournalPhase phase(Journal* journal, const std::string& name);

[[nodiscard]] Planned make_plan(const PlanningInputs& inputs);

// What make_plan will need, but for the gradients of the loss.
[[nodiscard]] ResourceEstimate estimate_planning(const PlanningRequest& options, const Checkpoint& checkpoint,
                                                 const ComputeOptions& compute, Calibration& calibration);

// The plan of equal ratios: about as large a model as the one that make_plan will find, or the smallest that such a
// plan gives where only the removal of heads brings the target within reach.
[[nodiscard]] SlicePlan expected_plan(const PlanningRequest& options, const Checkpoint& checkpoint);

}  // namespace dynslice
