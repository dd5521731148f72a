#include "dynslice/jobs/plan.h"

#include <utility>
#include <variant>

#include "dynslice/jobs/inputs.h"
#include "dynslice/jobs/journaling.h"
#include "dynslice/jobs/planning.h"
#include "dynslice/jobs/prepare.h"
#include "dynslice/resources/estimate.h"
#include "dynslice/slice/slice.h"
#include "dynslice/support/files.h"
#include "dynslice/train/estimate.h"
#include "dynslice/walk/journal.h"
#include "dynslice/walk/layer_walk.h"
#include "jobs/modular_planning.h"

namespace dynslice {
namespace {

ResourceEstimate estimate_plan(const PlanRequest& options, const Checkpoint& checkpoint, const ComputeOptions& compute,
                               Calibration& calibration) {
  const ResourceEstimate planning = estimate_planning(options, checkpoint, compute, calibration);
  const bool asks_the_loss = options.allocation().reads_losses || options.base_auto;  // by curves, or in trials
  return asks_the_loss ? estimate_sensitivity(checkpoint, compute, gradient_text(options, calibration)) + planning
                       : planning;
}

// What a plan is worked out from once the inputs are read.
struct PlanInputs {
  const PlanRequest& options;
  const Checkpoint& checkpoint;
  const ComputeOptions& compute;
  Calibration& calibration;
  const OrderedJson& run_description;
};

// Makes the plan and writes its file. `journal` may be null.
PlanResult plan_to_file(const PlanInputs& in, Journal* journal, ProgressSink& progress) {
  SensitivitySource sensitivity;
  if (must_walk(in.options)) {
    sensitivity = sensitivity_source(in.options, in.checkpoint, in.compute, in.calibration, journal, progress);
  }
  Planned planned = make_plan({.options = in.options,
                               .checkpoint = in.checkpoint,
                               .compute = in.compute,
                               .calibration = in.calibration,
                               .sensitivity = sensitivity,
                               .journal = journal,
                               .progress = progress});
  OrderedJson provenance = journal != nullptr ? journal->job() : in.run_description;
  provenance.update(planned.plan.provenance);
  planned.plan.provenance = provenance;
  if (in.calibration.is_loaded())
    planned.plan.provenance["calibration"] = describe(in.calibration.text(), in.options.calibration);
  const SizeChange sizes = size_change(in.checkpoint, sliced_config(in.checkpoint.config(), planned.plan),
                                       output_dtype(in.options.out_dtype, in.checkpoint));
  if (!in.options.output.empty()) write_file_atomically(in.options.output, to_text(to_json(planned.plan)));
  return {.plan = std::move(planned.plan), .scores = std::move(planned.scores), .sizes = sizes};
}

}  // namespace

OrderedJson to_json(const PlanResult& result) {
  OrderedJson json;
  json["plan"] = to_json(result.plan);
  if (result.scores) json["scores"] = to_json(*result.scores);
  add_sizes(json, result.sizes);
  return json;
}

Outcome<PlanResult> run(const PlanRequest& options, ProgressSink& progress) {
  if (!options.output.empty()) check_output_file(options.output);
  ComputeOptions compute = resolve_compute(options.common.device, options.common.dtype);
  const auto checkpoint = open_model(options.common, progress);
  Calibration calibration(options, *checkpoint, progress);
  check_planning(options, *checkpoint);
  auto prepared =
      prepare(options.common, *checkpoint, compute, {"plan", [&](const ComputeOptions& with, int64_t) {
                                                       return estimate_plan(options, *checkpoint, with, calibration);
                                                     }});
  if (auto* dry_run = std::get_if<DryRun>(&prepared)) return std::move(*dry_run);
  compute = std::get<ResourcePlan>(prepared).compute;
  const OrderedJson run_description = describe_run(options.common, compute, *checkpoint);
  const PlanInputs in{.options = options,
                      .checkpoint = *checkpoint,
                      .compute = compute,
                      .calibration = calibration,
                      .run_description = run_description};
  if (!must_walk(options)) return plan_to_file(in, nullptr, progress);
  OrderedJson job = fingerprint(options.common, compute, *checkpoint, &calibration.text(), options.calibration);
  add_file(job, "--scores", options.scores);
  const auto journal = open_journal(options.common, options.output, job, run_description);
  PlanResult result;
  with_journal(*journal, options.common, [&] { result = plan_to_file(in, journal.get(), progress); });
  journal->remove_files();
  return result;
}

}  // namespace dynslice
