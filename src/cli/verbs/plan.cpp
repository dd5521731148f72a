#include "cli/show/plan.h"

#include <iostream>

#include "cli/verbs/prepare_and_show.h"
#include "cli/verbs/verbs.h"
#include "dynslice/jobs/journaling.h"
#include "dynslice/jobs/modular_planning.h"
#include "dynslice/jobs/planning.h"
#include "dynslice/jobs/prepare.h"
#include "dynslice/resources/estimate.h"
#include "dynslice/support/files.h"
#include "dynslice/train/estimate.h"

namespace dynslice::cli {
namespace {

void write_and_report(const PlanRequest& options, const Checkpoint& checkpoint, const Planned& planned) {
  const SizeChange change = size_change(checkpoint, sliced_config(checkpoint.config(), planned.plan),
                                        output_dtype(options.out_dtype, checkpoint));
  if (!options.output.empty()) write_file_atomically(options.output, to_text(to_json(planned.plan)));
  if (options.common.json) {
    OrderedJson json;
    json["plan"] = to_json(planned.plan);
    if (planned.scores) json["scores"] = to_json(*planned.scores);
    add_sizes(json, change);
    std::cout << to_text(json);
    return;
  }
  print_plan(planned.plan, planned.scores, change);
  if (!options.output.empty())
    std::cout << "Written to " << options.output << "; slice by it with --plan " << options.output << ".\n";
}

ResourceEstimate estimate_plan(const PlanRequest& options, const Checkpoint& checkpoint, const ComputeOptions& compute,
                               Calibration& calibration) {
  const ResourceEstimate planning = estimate_planning(options, checkpoint, compute, calibration);
  const bool asks_the_loss = options.is_by_loss() || options.base_auto;  // by curves, or in trials
  return asks_the_loss ? estimate_sensitivity(checkpoint, compute, gradient_text(options, calibration)) + planning
                       : planning;
}

}  // namespace

void run(const PlanRequest& options, TerminalProgress& progress) {
  if (!options.output.empty()) check_output_file(options.output);
  ComputeOptions compute = resolve_compute(options.common.device, options.common.dtype);
  const auto checkpoint = open_model(options.common, progress);
  Calibration calibration(options, *checkpoint, progress);
  check_planning(options, *checkpoint);
  const auto resources = prepare_or_show(options.common, *checkpoint, compute,
                                         {"plan", [&](const ComputeOptions& with, int64_t) {
                                            return estimate_plan(options, *checkpoint, with, calibration);
                                          }});
  if (!resources) return;
  compute = resources->compute;
  const OrderedJson run_description = describe_run(options.common, compute, *checkpoint);
  const auto plan = [&](Journal* journal) {
    SensitivitySource sensitivity;
    if (must_walk(options))
      sensitivity = sensitivity_source(options, *checkpoint, compute, calibration, journal, progress);
    Planned planned = make_plan({options, *checkpoint, compute, calibration, sensitivity, journal, progress});
    OrderedJson provenance = journal != nullptr ? journal->job() : run_description;
    provenance.update(planned.plan.provenance);
    planned.plan.provenance = provenance;
    if (calibration.is_loaded())
      planned.plan.provenance["calibration"] = describe(calibration.text(), options.calibration);
    write_and_report(options, *checkpoint, planned);
  };
  if (!must_walk(options)) {
    plan(nullptr);
    return;
  }
  OrderedJson job = fingerprint(options.common, compute, *checkpoint, &calibration.text(), options.calibration);
  add_file(job, "--scores", options.scores);
  const auto journal = open_journal(options.common, options.output, job, run_description);
  with_journal(*journal, options.common, [&] { plan(journal.get()); });
  journal->remove_files();
}

}  // namespace dynslice::cli
