#include "jobs/depth_frame.h"

#include <chrono>
#include <cmath>
#include <memory>
#include <optional>
#include <utility>

#include "dynslice/checkpoint/checkpoint_writer.h"
#include "dynslice/jobs/checkpoint_output.h"
#include "dynslice/jobs/journaling.h"
#include "dynslice/jobs/prepare.h"
#include "dynslice/jobs/sizes.h"
#include "dynslice/model/tensor_layout.h"
#include "dynslice/support/error.h"
#include "dynslice/walk/walk_estimate.h"
#include "jobs/folder_job.h"
#include "jobs/model_card.h"

namespace dynslice {
namespace {

DepthResult search_and_write(const DepthRequest& request, const DepthMethod& method, const DepthInputs& in,
                             const std::filesystem::path& out, const std::shared_ptr<WorkFolder>& folder) {
  DepthSearchResult chosen = method.search(in);
  const ModelConfig config = depth_config(in.checkpoint.config(), chosen.plan);
  const at::ScalarType dtype = output_dtype(request.out_dtype, in.checkpoint);
  const SizeChange sizes = size_change(in.checkpoint, config, dtype);
  CheckpointWriter writer(out, output_tensors(in.checkpoint, config, dtype), request.common.force, folder,
                          in.journal.attached());
  write_depth(in.checkpoint, chosen.plan, dtype, writer, in.progress);
  write_companions(in.checkpoint, config, dtype, writer, in.progress);
  OrderedJson json = describe_checkpoint("depth " + method.name, in.journal.job(), in.checkpoint, in.progress);
  json["plan"] = {{"layers", chosen.plan.layers}};
  json.update(chosen.json);
  json["layers"] = {{"before", in.layers()}, {"after", chosen.plan.layers.size()}};
  if (in.text != nullptr) json["calibration"] = describe(*in.text, request.calibration);
  add_sizes(json, sizes);
  json = whole_record(std::move(json));
  write_record({CardKind::kFinetune, out, in.checkpoint, config}, json, writer);
  writer.commit([&] { in.journal.remove_files(); });
  return {.plan = std::move(chosen.plan),
          .search = std::move(chosen.search),
          .layers_before = in.layers(),
          .sizes = sizes,
          .record = std::move(json),
          .output = out,
          .seconds = 0,
          .peak = {}};
}

// The samples and the length of windows that the method has by default, where the request has none.
std::optional<LoadedText> load_calibration(DepthRequest& request, const DepthMethod& method,
                                           const Checkpoint& checkpoint, ProgressSink& progress) {
  if (method.samples == 0) return std::nullopt;
  TextOptions& calibration = request.calibration;
  calibration.at_most = method.at_most && calibration.samples == 0;
  if (calibration.samples == 0) calibration.samples = method.samples;
  if (calibration.seqlen == 0 && method.seqlen > 0) calibration.seqlen = method.seqlen;
  return load_windows(calibration, TextUse::kCalibration, request.common, checkpoint, progress);
}

ResourceEstimate estimate_method(const DepthRequest& request, const DepthMethod& method, const Checkpoint& checkpoint,
                                 const std::optional<LoadedText>& text, const ComputeOptions& compute) {
  const double share = static_cast<double>(method.layers_left) / static_cast<double>(checkpoint.config().num_layers());
  const auto output_bytes =
      static_cast<uint64_t>(share * static_cast<double>(count_cost(checkpoint.config()).parameters)) *
      c10::elementSize(output_dtype(request.out_dtype, checkpoint));
  if (!text) return estimate_conversion(checkpoint, output_bytes);
  DepthUse use = method.use(text->windows);
  use.output_bytes = output_bytes;
  const ResourceEstimate search = estimate_depth(checkpoint, compute, amount_of(text->windows), use);
  return method.training ? search + method.training(compute, text->windows) : search;
}

}  // namespace

OrderedJson to_json(const DepthResult& result) {
  return written_json(result.record, result.seconds, result.peak, result.output);
}

int64_t share_of_layers(double ratio, int64_t layers) { return std::llround(ratio * static_cast<double>(layers)); }

int64_t layers_to_go(const DepthRequest& request, int64_t layers) {
  if (!request.layers && !request.ratio)
    throw_error(ErrorKind::kUsage, "say how many layers go: --layers N, or --ratio 25%");
  const int64_t count = request.layers ? *request.layers : share_of_layers(*request.ratio, layers);
  if (count >= layers) {
    throw_error(ErrorKind::kUsage, "--layers ", count, ": the model has ", layers, " layers, and one must stay");
  }
  return count;
}

Outcome<DepthResult> run_method(DepthRequest request, ProgressSink& progress,
                                const std::function<DepthMethod(const Checkpoint& checkpoint)>& method_for) {
  const auto start = std::chrono::steady_clock::now();
  ComputeOptions compute = resolve_compute(request.common.device, request.common.dtype);
  const auto checkpoint = open_model(request.common, progress);
  check_depth(*checkpoint);
  const DepthMethod method = method_for(*checkpoint);
  const std::filesystem::path out = checkpoint_folder(request.output, request.common, *checkpoint, method.suffix);
  const std::optional<LoadedText> text = load_calibration(request, method, *checkpoint, progress);
  auto prepared =
      prepare(request.common, *checkpoint, compute,
              {.verb = "depth " + method.name,
               .estimator = [&](const ComputeOptions& with,
                                int64_t) { return estimate_method(request, method, *checkpoint, text, with); },
               .output = out});
  if (auto* dry_run = std::get_if<DryRun>(&prepared)) return std::move(*dry_run);
  compute = std::get<ResourcePlan>(prepared).compute;

  const LoadedText* const read = text ? &*text : nullptr;
  return write_folder<DepthResult>(
      {.common = request.common, .compute = compute, .checkpoint = *checkpoint, .out = out, .start = start},
      [&] { return fingerprint(request.common, compute, *checkpoint, read, request.calibration); },
      [&](const std::shared_ptr<WorkFolder>& folder, Journal& journal) {
        return search_and_write(request, method, {*checkpoint, compute, read, journal, progress}, out, folder);
      });
}

}  // namespace dynslice
