#include "dynslice/jobs/slice.h"

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "dynslice/checkpoint/checkpoint_writer.h"
#include "dynslice/checkpoint/tensor_copy.h"
#include "dynslice/evaluate/speed.h"
#include "dynslice/jobs/checkpoint_output.h"
#include "dynslice/jobs/inputs.h"
#include "dynslice/jobs/journaling.h"
#include "dynslice/jobs/planning.h"
#include "dynslice/model/tensor_layout.h"
#include "dynslice/modular/estimate.h"
#include "dynslice/modular/modular.h"
#include "dynslice/resources/estimate.h"
#include "dynslice/slice/estimate.h"
#include "dynslice/slice/global.h"
#include "dynslice/slice/slice.h"
#include "dynslice/support/format.h"
#include "dynslice/train/estimate.h"
#include "dynslice/walk/journal.h"
#include "dynslice/walk/layer_walk.h"
#include "jobs/folder_job.h"
#include "jobs/model_card.h"
#include "jobs/modular_planning.h"

namespace dynslice {
namespace {

std::string folder_suffix(WidthMethod method, double average_ratio) {
  std::string percent = format_fixed(100 * average_ratio, 1);
  if (percent.ends_with(".0")) percent.resize(percent.size() - 2);
  return (method == WidthMethod::kModular ? "modular-" : "sliced-") + percent;
}

// Runs that are shorter say more about their start than about arithmetic.
constexpr double kSecondsWorthComparing = 10;

std::optional<SliceArithmetic> measure_arithmetic(const Work& work, const ComputeOptions& compute, double seconds) {
  if (seconds < kSecondsWorthComparing || !compute.device.is_cpu()) return std::nullopt;
  const auto peak = [](at::ScalarType dtype) { return 1e9 * measure_gemm_peak(dtype).gflops; };
  const double fp32 = peak(at::kFloat);
  const GemmRates rates{
      .forward = compute.dtype == at::kFloat ? fp32 : peak(compute.dtype), .fp32 = fp32, .fp64 = peak(at::kDouble)};
  return SliceArithmetic{
      .flops = work.flops(), .seconds = seconds, .share_of_peak = ideal_seconds(work, rates) / seconds};
}

GlobalOptions global_options(const SliceRequest& options) {
  GlobalOptions global;
  global.directions = options.directions;
  global.refit = rotation_refit(options);
  return global;
}

// What the run has in its hands once the inputs are read.
struct SliceInputs {
  const SliceRequest& options;
  const ComputeOptions& compute;
  const Checkpoint& checkpoint;
  Calibration& calibration;
  std::optional<SlicePlan> plan{};  // that was given
  std::filesystem::path out{};
};

// Planning and slicing together.
ResourceEstimate estimate_slicing(const SliceInputs& in, const ComputeOptions& compute) {
  const SlicePlan plan = in.plan ? *in.plan : expected_plan(in.options, in.checkpoint);
  const ModelConfig config = sliced_config(in.checkpoint.config(), plan);
  const uint64_t output_bytes = static_cast<uint64_t>(count_cost(config).parameters) *
                                c10::elementSize(output_dtype(in.options.out_dtype, in.checkpoint));
  const TextAmount text = amount_of(in.calibration.text().windows);
  const TextAmount gradients = gradient_text(in.options, in.calibration);
  ResourceEstimate slicing;
  if (plan.is_modular()) {
    const ModularUse use{.calibration = text,
                         .held_out = {},
                         .gradients = gradients,
                         .compressed = &config,
                         .output_bytes = output_bytes};
    slicing = estimate_modular(in.checkpoint, compute, use);
  } else if (plan.is_global()) {
    const GlobalUse use{.calibration = text,
                        .gradients = gradients,
                        .refits = global_options(in.options).refit.is_any(),
                        .sliced = &config,
                        .output_bytes = output_bytes};
    slicing = estimate_slice_globally(in.checkpoint, compute, use);
  } else {
    const SliceUse use{.calibration = text,
                       .held_out = {},
                       .refits = rotation_refit(in.options).is_any(),
                       .sliced = &config,
                       .output_bytes = output_bytes};
    slicing = estimate_slice(in.checkpoint, compute, use);
  }
  slicing = estimate_sensitivity(in.checkpoint, compute, gradients) + slicing;
  return in.plan ? slicing : estimate_planning(in.options, in.checkpoint, compute, in.calibration) + slicing;
}

// What the smaller model's tensors are made with and written to.
struct SliceOutput {
  const std::vector<OutputTensor>& tensors;
  CheckpointWriter& writer;
  Journal& journal;
  ProgressSink& progress;
};

// Writes the tensors of the model that the plan says. The sensitivity may be let go.
void write_tensors(const SliceInputs& in, const SlicePlan& plan, SensitivitySource& sensitivity,
                   const SliceOutput& output) {
  CheckpointWriter& writer = output.writer;
  const TokenWindows& windows = in.calibration.text().windows;
  const LayerWalk walk(in.checkpoint, in.compute, windows.length, output.progress);
  const auto write = [&](const std::string& name, const at::Tensor& values) { writer.write(name, values); };
  if (plan.is_modular()) {
    compress_layers(walk, plan, windows, sensitivity, modular_options(in.options.modular), write, nullptr,
                    JournalPhase(output.journal, "compressing"));
    const auto is_in_no_layer = [](const std::string& name) { return !split_layer_name(name); };
    copy_tensors(in.checkpoint, output.tensors, is_in_no_layer, "Copying embedding and head", writer, output.progress);
    return;
  }
  const TensorSink sink{write, [&](const std::string& name, int64_t begin, const at::Tensor& rows) {
                          writer.write_rows(name, begin, rows);
                        }};
  const JournalPhase slicing(output.journal, "slicing");
  if (plan.is_global()) {
    slice_globally(walk, plan, windows, sensitivity, global_options(in.options), sink, slicing);
  } else {
    sensitivity = {};  // the plan alone asked for it
    slice_model(walk, plan, windows, sink, nullptr, slicing, rotation_refit(in.options));
  }
}

OrderedJson record_of_slice(const SliceInputs& in, const Planned& planned, const SizeChange& sizes,
                            const OrderedJson& run_description, ProgressSink& progress) {
  OrderedJson json = describe_checkpoint(name_of(planned.plan.method), run_description, in.checkpoint, progress);
  json["plan"] = to_json(planned.plan);
  if (planned.scores) json["scores"] = to_json(*planned.scores);
  json["calibration"] = describe(in.calibration.text(), in.options.calibration);
  add_sizes(json, sizes);
  return whole_record(std::move(json));
}

// Plans, slices and writes the checkpoint; what the journal holds of that is taken from there.
SliceJobResult slice_to_folder(const SliceInputs& in, const std::shared_ptr<WorkFolder>& folder, Journal& journal,
                               ProgressSink& progress) {
  SensitivitySource sensitivity =
      sensitivity_source(in.options, in.checkpoint, in.compute, in.calibration, &journal, progress);
  Planned planned = in.plan ? Planned{*in.plan, std::nullopt}
                            : make_plan({.options = in.options,
                                         .checkpoint = in.checkpoint,
                                         .compute = in.compute,
                                         .calibration = in.calibration,
                                         .sensitivity = sensitivity,
                                         .journal = &journal,
                                         .progress = progress});
  const ModelConfig config = sliced_config(in.checkpoint.config(), planned.plan);
  const at::ScalarType dtype = output_dtype(in.options.out_dtype, in.checkpoint);
  SliceJobResult result;
  result.sizes = size_change(in.checkpoint, config, dtype);
  result.calibration = amount_of(in.calibration.text().windows);
  const std::vector<OutputTensor> tensors = checkpoint_tensors(config, dtype);
  CheckpointWriter writer(in.out, output_tensors(in.checkpoint, config, dtype), in.options.common.force, folder,
                          journal.attached());
  journal.attach([&] { return writer.written(); });
  write_tensors(in, planned.plan, sensitivity,
                {.tensors = tensors, .writer = writer, .journal = journal, .progress = progress});

  write_companions(in.checkpoint, config, dtype, writer, progress);
  result.record = record_of_slice(in, planned, result.sizes, journal.job(), progress);
  write_record({CardKind::kFinetune, in.out, in.checkpoint, config}, result.record, writer);
  writer.commit([&] { journal.remove_files(); });

  result.plan = std::move(planned.plan);
  result.scores = std::move(planned.scores);
  result.dtype = in.compute.dtype;
  result.device = in.compute.device;
  result.output = in.out;
  return result;
}

}  // namespace

OrderedJson to_json(const SliceJobResult& result) {
  OrderedJson json = result.record;
  json["wall_seconds"] = result.seconds;
  if (const auto& arithmetic = result.arithmetic) {
    json["arithmetic"] = {{"flops", arithmetic->flops},
                          {"gflops_per_second", arithmetic->flops / arithmetic->seconds / 1e9},
                          {"share_of_gemm_peak", arithmetic->share_of_peak}};
  }
  add_peaks(json, result.peak);
  json["output"] = result.output.string();
  return json;
}

Outcome<SliceJobResult> run(const SliceRequest& request, ProgressSink& progress) {
  SliceRequest options = request;  // a plan that is given decides some of them
  const auto start = std::chrono::steady_clock::now();
  ComputeOptions compute = resolve_compute(options.common.device, options.common.dtype);
  if (!options.output.empty()) check_output(options.output, options.common.force || options.common.resume);
  const auto checkpoint = open_model(options.common, progress);
  Calibration calibration(options, *checkpoint, progress);
  SliceInputs in{.options = options, .compute = compute, .checkpoint = *checkpoint, .calibration = calibration};
  if (options.plan.empty()) {
    check_planning(options, *checkpoint);
  } else {
    in.plan = read_plan(options.plan, checkpoint->config());
    adopt_plan(options, *in.plan, *checkpoint);
  }
  const double average = in.plan ? in.plan->average_ratio : options.average ? *options.average : options.target->share;
  in.out = checkpoint_folder(options.output, options.common, *checkpoint,
                             folder_suffix(in.plan ? in.plan->method : options.method, average));
  const auto estimator = [&](const ComputeOptions& with, int64_t) { return estimate_slicing(in, with); };
  auto prepared = prepare(options.common, *checkpoint, compute,
                          {.verb = "slice", .estimator = estimator, .stream_bytes = 0, .output = in.out});
  if (auto* dry_run = std::get_if<DryRun>(&prepared)) return std::move(*dry_run);
  compute = std::get<ResourcePlan>(prepared).compute;
  const Work work = std::get<ResourcePlan>(prepared).estimate.work;  // of planning and slicing together

  const auto fingerprint_of_slice = [&] {
    OrderedJson job = fingerprint(options.common, compute, *checkpoint, &calibration.text(), options.calibration);
    add_file(job, "--scores", options.scores);
    add_file(job, "--plan", options.plan);
    return job;
  };
  auto outcome = write_folder<SliceJobResult>(
      {.common = options.common, .compute = compute, .checkpoint = *checkpoint, .out = in.out, .start = start},
      fingerprint_of_slice, [&](const std::shared_ptr<WorkFolder>& folder, Journal& journal) {
        return slice_to_folder(in, folder, journal, progress);
      });
  // What is measured now takes no part in what the run took.
  if (auto* result = std::get_if<SliceJobResult>(&outcome))
    result->arithmetic = measure_arithmetic(work, compute, result->seconds);
  return outcome;
}

}  // namespace dynslice
