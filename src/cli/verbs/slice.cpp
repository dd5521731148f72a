#include "dynslice/slice/slice.h"

#include <chrono>
#include <iostream>

#include "cli/show/plan.h"
#include "cli/show/written.h"
#include "cli/verbs/prepare_and_show.h"
#include "cli/verbs/verbs.h"
#include "dynslice/checkpoint/checkpoint_writer.h"
#include "dynslice/checkpoint/modeling_files.h"
#include "dynslice/checkpoint/tensor_copy.h"
#include "dynslice/evaluate/speed.h"
#include "dynslice/jobs/checkpoint_output.h"
#include "dynslice/jobs/journaling.h"
#include "dynslice/jobs/modular_planning.h"
#include "dynslice/jobs/planning.h"
#include "dynslice/jobs/prepare.h"
#include "dynslice/model/tensor_layout.h"
#include "dynslice/modular/estimate.h"
#include "dynslice/modular/modular.h"
#include "dynslice/resources/estimate.h"
#include "dynslice/slice/estimate.h"
#include "dynslice/slice/global.h"
#include "dynslice/support/error.h"
#include "dynslice/support/log.h"
#include "dynslice/text/tokenizer/tokenizer.h"
#include "dynslice/train/estimate.h"

namespace dynslice::cli {
namespace {

std::string folder_suffix(const std::string& method, double average_ratio) {
  std::string percent = format_fixed(100 * average_ratio, 1);
  if (percent.ends_with(".0")) percent.resize(percent.size() - 2);
  return (method == "modular" ? "modular-" : "sliced-") + percent;
}

// Runs that are shorter say more about their start than about arithmetic.
constexpr double kSecondsWorthComparing = 10;

// What the run took, read before anything is measured after it.
struct Spent {
  double seconds = 0;
  PeakMemory peak;
};

// How fast the run computed, beside what this machine reaches in matrix products.
struct Arithmetic {
  double flops = 0;
  double seconds = 0;
  double share_of_peak = 0;
};

std::optional<Arithmetic> measure_arithmetic(const Work& work, const ComputeOptions& compute, double seconds) {
  if (seconds < kSecondsWorthComparing || !compute.device.is_cpu()) return std::nullopt;
  const auto peak = [](at::ScalarType dtype) { return 1e9 * measure_gemm_peak(dtype).gflops; };
  const double fp32 = peak(at::kFloat);
  const GemmRates rates{compute.dtype == at::kFloat ? fp32 : peak(compute.dtype), fp32, peak(at::kDouble)};
  return Arithmetic{work.flops(), seconds, ideal_seconds(work, rates) / seconds};
}

void report(const SliceRequest& options, OrderedJson json, const std::filesystem::path& out, const Spent& spent,
            const std::optional<Arithmetic>& arithmetic) {
  json["wall_seconds"] = spent.seconds;
  if (arithmetic) {
    json["arithmetic"] = {{"flops", arithmetic->flops},
                          {"gflops_per_second", arithmetic->flops / arithmetic->seconds / 1e9},
                          {"share_of_gemm_peak", arithmetic->share_of_peak}};
  }
  add_peaks(json, spent.peak);
  json["output"] = out.string();
  if (options.common.json) std::cout << to_text(json);
}

GlobalOptions global_options(const SliceRequest& options) {
  GlobalOptions global;
  if (options.directions == "loss") global.directions = DirectionChoice::kLoss;
  if (options.directions == "places") global.directions = DirectionChoice::kPlaces;
  global.refit = rotation_refit(options);
  return global;
}

// What the run has in its hands once the inputs are read.
struct SliceInputs {
  const SliceRequest& options;
  const ComputeOptions& compute;
  const Checkpoint& checkpoint;
  Calibration& calibration;
  std::optional<SlicePlan> plan;  // that was given
  std::filesystem::path out;
  Work work{};  // that was estimated, planning and slicing together
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
    slicing = estimate_modular(in.checkpoint, compute, {text, {}, gradients, &config, output_bytes});
  } else if (plan.is_global()) {
    slicing = estimate_slice_globally(
        in.checkpoint, compute, {text, gradients, global_options(in.options).refit.is_any(), &config, output_bytes});
  } else {
    slicing = estimate_slice(in.checkpoint, compute,
                             {text, {}, {}, rotation_refit(in.options).is_any(), &config, output_bytes});
  }
  slicing = estimate_sensitivity(in.checkpoint, compute, gradients) + slicing;
  return in.plan ? slicing : estimate_planning(in.options, in.checkpoint, compute, in.calibration) + slicing;
}

// Plans, slices and writes the checkpoint; what the journal holds of that is taken from there.
void slice_to_folder(const SliceInputs& in, const std::shared_ptr<WorkFolder>& folder, Journal& journal,
                     std::chrono::steady_clock::time_point start, ProgressSink& progress) {
  SensitivitySource sensitivity =
      sensitivity_source(in.options, in.checkpoint, in.compute, in.calibration, &journal, progress);
  const Planned planned =
      in.plan ? Planned{*in.plan, std::nullopt}
              : make_plan({in.options, in.checkpoint, in.compute, in.calibration, sensitivity, &journal, progress});
  const ModelConfig config = sliced_config(in.checkpoint.config(), planned.plan);
  const at::ScalarType dtype = output_dtype(in.options.out_dtype, in.checkpoint);
  const SizeChange change = size_change(in.checkpoint, config, dtype);
  const TokenWindows& windows = in.calibration.text().windows;
  const std::vector<OutputTensor> tensors = checkpoint_tensors(config, dtype);
  CheckpointWriter writer(in.out, tensors, in.options.common.force, folder, journal.attached());
  journal.attach([&] { return writer.written(); });
  const LayerWalk walk(in.checkpoint, in.compute, windows.length, progress);
  const auto write = [&](const std::string& name, const at::Tensor& values) { writer.write(name, values); };
  if (planned.plan.is_modular()) {
    compress_layers(walk, planned.plan, windows, sensitivity, modular_options(in.options.modular), write, nullptr,
                    JournalPhase(journal, "compressing"));
    const auto is_in_no_layer = [](const std::string& name) { return !split_layer_name(name); };
    copy_tensors(in.checkpoint, tensors, is_in_no_layer, "Copying embedding and head", writer, progress);
  } else {
    const TensorSink sink{write, [&](const std::string& name, int64_t begin, const at::Tensor& rows) {
                            writer.write_rows(name, begin, rows);
                          }};
    if (planned.plan.is_global()) {
      slice_globally(walk, planned.plan, windows, sensitivity, global_options(in.options), sink,
                     JournalPhase(journal, "slicing"));
    } else {
      sensitivity = {};  // the plan alone asked for it
      slice_model(walk, planned.plan, windows, sink, nullptr, JournalPhase(journal, "slicing"),
                  rotation_refit(in.options));
    }
  }

  write_companions(in.checkpoint, config, dtype, writer);
  OrderedJson json = describe_checkpoint(planned.plan.method, journal.job(), in.checkpoint, progress);
  json["plan"] = to_json(planned.plan);
  if (planned.scores) json["scores"] = to_json(*planned.scores);
  json["calibration"] = describe(in.calibration.text(), in.options.calibration);
  add_sizes(json, change);
  json = whole_record(std::move(json));
  writer.write_text("dynslice.json", to_text(json));
  writer.commit([&] { journal.remove_files(); });

  const std::chrono::duration<double> here = std::chrono::steady_clock::now() - start;
  const Spent spent{journal.earlier_seconds() + here.count(), peak_memory(in.compute)};
  const auto arithmetic = measure_arithmetic(in.work, in.compute, spent.seconds);
  report(in.options, json, in.out, spent, arithmetic);
  if (in.options.common.json) return;
  print_plan(planned.plan, planned.scores, change);
  std::cout << "Calibrated on " << windows.count << " windows of " << windows.length << " tokens in "
            << dtype_name(in.compute.dtype) << " on " << in.compute.device.str() << "; "
            << format_duration(spent.seconds) << ", peak memory " << format_bytes(spent.peak.rss) << ".\n";
  if (arithmetic) {
    std::cout << format_fixed(arithmetic->flops / 1e12, 1) << " TFLOP at "
              << format_fixed(arithmetic->flops / arithmetic->seconds / 1e9, 0) << " GFLOP/s, "
              << format_fixed(100 * arithmetic->share_of_peak, 0)
              << " % of what this machine reaches in matrix products alone.\n";
  }
  print_written(in.options.common, in.out);
}

}  // namespace

void run(const SliceRequest& given, TerminalProgress& progress) {
  SliceRequest options = given;
  const auto start = std::chrono::steady_clock::now();
  ComputeOptions compute = resolve_compute(options.common.device, options.common.dtype);
  if (!options.output.empty()) check_output(options.output, options.common.force || options.common.resume);
  const auto checkpoint = open_model(options.common, progress);
  Calibration calibration(options, *checkpoint, progress);
  SliceInputs in{options, compute, *checkpoint, calibration, std::nullopt, {}};
  if (options.plan.empty()) {
    check_planning(options, *checkpoint);
  } else {
    in.plan = read_plan(options.plan, checkpoint->config());
    adopt_plan(options, *in.plan, *checkpoint);
  }
  const double average = in.plan ? in.plan->average_ratio : options.average ? *options.average : options.target->share;
  in.out = checkpoint_folder(options.output, options.common, *checkpoint,
                             folder_suffix(in.plan ? in.plan->method : options.method, average));
  const auto resources = prepare_or_show(
      options.common, *checkpoint, compute,
      {"slice", [&](const ComputeOptions& with, int64_t) { return estimate_slicing(in, with); }, 0, in.out});
  if (!resources) return;
  compute = resources->compute;
  in.work = resources->estimate.work;

  const auto folder = std::make_shared<WorkFolder>(CheckpointWriter::partial_folder(in.out));
  const OrderedJson run_description = describe_run(options.common, compute, *checkpoint);
  if (is_finished(options.common, in.out, *folder, run_description)) return;
  OrderedJson job = fingerprint(options.common, compute, *checkpoint, &calibration.text(), options.calibration);
  add_file(job, "--scores", options.scores);
  add_file(job, "--plan", options.plan);
  Journal journal(folder, job, run_description, journal_options(options.common));
  with_journal(journal, options.common, [&] { slice_to_folder(in, folder, journal, start, progress); });
}

}  // namespace dynslice::cli
