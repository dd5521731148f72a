#include "dynslice/slice/slice.h"

#include <chrono>
#include <cmath>
#include <iostream>

#include "cli/planning.h"
#include "cli/verbs.h"
#include "dynslice/model/checkpoint_writer.h"
#include "dynslice/model/tensor_layout.h"
#include "dynslice/support/error.h"
#include "dynslice/support/hash.h"
#include "dynslice/support/log.h"
#include "dynslice/text/tokenizer.h"

namespace dynslice::cli {
namespace {

std::filesystem::path output_folder(const SliceOptions& options, const Checkpoint& checkpoint, const SlicePlan& plan) {
  if (!options.output.empty()) return options.output;
  std::filesystem::path source = std::filesystem::absolute(checkpoint.path()).lexically_normal();
  if (!source.has_filename()) source = source.parent_path();
  const std::string name = source.extension() == ".gguf" ? source.stem().string() : source.filename().string();
  return name + "-sliced-" + std::to_string(std::lround(100 * plan.average_ratio));
}

// Fails before hours of work rather than after them.
void check_output(const std::filesystem::path& out, bool force) {
  if (std::filesystem::exists(out) && !force) {
    throw_error(ErrorKind::kUsage, out.string(), ": exists; choose another folder with -o, or replace it with --force");
  }
}

OrderedJson hash_sources(const Checkpoint& checkpoint) {
  OrderedJson files;
  for (const auto& file : checkpoint.files()) files[file.filename().string()] = sha256_of_file(file);
  return files;
}

Planned obtain_plan(const SliceOptions& options, const Checkpoint& checkpoint, const ComputeOptions& compute,
                    Calibration& calibration, ProgressSink& progress) {
  if (options.plan.empty()) return make_plan(options, checkpoint, compute, calibration, progress);
  if (options.average) throw_error(ErrorKind::kUsage, "--plan and --avg exclude each other: the plan says how much to slice");
  return {read_plan(options.plan, checkpoint.config()), std::nullopt};
}

OrderedJson dynslice_json(const SliceOptions& options, const Planned& planned, const OrderedJson& run_description,
                          const LoadedText& calibration, const SizeChange& change, const Checkpoint& checkpoint) {
  OrderedJson json;
  json["kind"] = "dynslice.checkpoint";
  json["method"] = "slice";
  json["run"] = run_description;
  json["source"] = hash_sources(checkpoint);
  json["plan"] = to_json(planned.plan);
  if (planned.scores) json["scores"] = to_json(*planned.scores);
  json["calibration"] = describe(calibration, options.calibration);
  add_sizes(json, change);
  return json;
}

}  // namespace

void run(const SliceOptions& options, TerminalProgress& progress) {
  const auto start = std::chrono::steady_clock::now();
  const ComputeOptions compute = resolve_compute(options.common.device, options.common.dtype);
  if (!options.output.empty()) check_output(options.output, options.force);
  const auto checkpoint = open_model(options.common, progress);
  Calibration calibration(options, *checkpoint, progress);
  const Planned planned = obtain_plan(options, *checkpoint, compute, calibration, progress);
  const std::filesystem::path out = output_folder(options, *checkpoint, planned.plan);
  check_output(out, options.force);

  const ModelConfig config = sliced_config(checkpoint->config(), planned.plan);
  const at::ScalarType dtype = output_dtype(options, *checkpoint);
  const SizeChange change = size_change(*checkpoint, config, dtype);
  const TokenWindows& windows = calibration.text().windows;
  CheckpointWriter writer(out, checkpoint_tensors(config, dtype), options.force);
  const LayerWalk walk(*checkpoint, compute, windows.length, progress);
  slice_model(walk, planned.plan, windows, [&](const std::string& name, const at::Tensor& values) { writer.write(name, values); });

  write_tokenizer_files(checkpoint->path(), writer.folder());
  writer.write_text("config.json", write_config(config, torch_dtype_name(dtype)).dump(2) + "\n");
  const OrderedJson run_description = describe_run(options.common, compute, *checkpoint);
  OrderedJson json = dynslice_json(options, planned, run_description, calibration.text(), change, *checkpoint);
  writer.write_text("dynslice.json", json.dump(2) + "\n");
  writer.commit();

  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (options.common.json) {
    json["wall_seconds"] = seconds;
    json["peak_rss_bytes"] = peak_rss_bytes();
    json["output"] = out.string();
    std::cout << json.dump(2) << '\n';
    return;
  }
  print_plan(planned.plan, planned.scores, change);
  std::cout << "Calibrated on " << windows.count << " windows of " << windows.length << " tokens in " << dtype_name(compute.dtype) << " on "
            << compute.device.str() << "; " << format_duration(seconds) << ", peak memory " << format_bytes(peak_rss_bytes())
            << ".\nWritten to " << out.string() << ". Next: dynslice eval " << out.string() << " --ppl wikitext2\n";
}

}  // namespace dynslice::cli
