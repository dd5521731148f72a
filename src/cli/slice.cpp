#include "dynslice/slice/slice.h"

#include <chrono>
#include <iostream>

#include "cli/planning.h"
#include "cli/resources.h"
#include "cli/verbs.h"
#include "dynslice/model/checkpoint_writer.h"
#include "dynslice/model/tensor_layout.h"
#include "dynslice/support/error.h"
#include "dynslice/support/hash.h"
#include "dynslice/support/log.h"
#include "dynslice/text/hub.h"
#include "dynslice/text/tokenizer.h"

namespace dynslice::cli {
namespace {

std::filesystem::path output_folder(const SliceOptions& options, const Checkpoint& checkpoint, const SlicePlan& plan) {
  if (!options.output.empty()) return options.output;
  std::filesystem::path source = std::filesystem::absolute(checkpoint.path()).lexically_normal();
  if (!source.has_filename()) source = source.parent_path();
  std::string name = source.extension() == ".gguf" ? source.stem().string() : source.filename().string();
  if (const auto id = parse_hub_id(options.common.model); id && !std::filesystem::exists(options.common.model)) {
    name = id->repo.substr(id->repo.find('/') + 1);  // the source lies in a folder named by its commit
  }
  std::string percent = format_fixed(100 * plan.average_ratio, 1);
  if (percent.ends_with(".0")) percent.resize(percent.size() - 2);
  return name + "-sliced-" + percent;
}

// Fails before hours of work rather than after them.
void check_output(const std::filesystem::path& out, bool force) {
  if (std::filesystem::exists(out) && !force) {
    throw_error(ErrorKind::kUsage, out.string(), ": exists; choose another folder with -o, or replace it with --force");
  }
}

// --force must never remove the model that is being read.
void check_apart(const std::filesystem::path& out, const Checkpoint& checkpoint) {
  const auto target = std::filesystem::weakly_canonical(out);
  for (auto place = std::filesystem::weakly_canonical(checkpoint.path()); place.has_relative_path();
       place = place.parent_path()) {
    if (place == target) {
      throw_error(ErrorKind::kUsage, out.string(),
                  ": holds the model that is to be sliced; choose another folder with -o");
    }
  }
}

OrderedJson hash_sources(const Checkpoint& checkpoint, ProgressSink& progress) {
  int64_t bytes = 0;
  for (const auto& file : checkpoint.files()) bytes += static_cast<int64_t>(std::filesystem::file_size(file));
  ProgressTask task(progress, "Hashing the source", bytes, "bytes");
  OrderedJson hashes;
  for (const auto& file : checkpoint.files()) {
    hashes[file.filename().string()] = sha256_of_file(file, [&](int64_t read) { task.advance(read); });
  }
  return hashes;
}

Planned obtain_plan(const SliceOptions& options, const Checkpoint& checkpoint, const ComputeOptions& compute,
                    Calibration& calibration, ProgressSink& progress) {
  if (options.plan.empty()) return make_plan(options, checkpoint, compute, calibration, progress);
  return {read_plan(options.plan, checkpoint.config()), std::nullopt};
}

// Planning and slicing together.
ResourceEstimate estimate_slicing(const SliceOptions& options, const Checkpoint& checkpoint,
                                  const ComputeOptions& compute, Calibration& calibration) {
  check_sliceable(checkpoint);
  const bool is_given = !options.plan.empty();
  const ModelConfig config = sliced_config(
      checkpoint.config(),
      is_given ? read_plan(options.plan, checkpoint.config()) : expected_plan(options, checkpoint.config()));
  uint64_t output_bytes = 0;
  for (const OutputTensor& tensor : checkpoint_tensors(config, output_dtype(options, checkpoint))) {
    uint64_t bytes = c10::elementSize(tensor.dtype);
    for (const int64_t size : tensor.shape) bytes *= static_cast<uint64_t>(size);
    output_bytes += bytes;
  }
  const ResourceEstimate slicing = estimate_slice(checkpoint, compute, amount_of(calibration.text().windows), {},
                                                  &config, output_bytes);
  return is_given ? slicing : estimate_planning(options, checkpoint, compute, calibration) + slicing;
}

OrderedJson dynslice_json(const SliceOptions& options, const Planned& planned, const OrderedJson& run_description,
                          const LoadedText& calibration, const SizeChange& change, const OrderedJson& source_hashes) {
  OrderedJson json;
  json["kind"] = "dynslice.checkpoint";
  json["method"] = "slice";
  json["run"] = run_description;
  json["source"] = source_hashes;
  json["plan"] = to_json(planned.plan);
  if (planned.scores) json["scores"] = to_json(*planned.scores);
  json["calibration"] = describe(calibration, options.calibration);
  add_sizes(json, change);
  return json;
}

}  // namespace

void run(const SliceOptions& options, TerminalProgress& progress) {
  const auto start = std::chrono::steady_clock::now();
  ComputeOptions compute = resolve_compute(options.common.device, options.common.dtype);
  if (!options.output.empty()) check_output(options.output, options.force);
  const auto checkpoint = open_model(options.common, progress);
  Calibration calibration(options, *checkpoint, progress);
  const auto resources = prepare(options.common, *checkpoint, compute,
                                 {"slice",
                                  [&](const ComputeOptions& with, int64_t) {
                                    return estimate_slicing(options, *checkpoint, with, calibration);
                                  },
                                  0, options.output.empty() ? "." : options.output});
  if (!resources) return;
  compute = resources->compute;
  const Planned planned = obtain_plan(options, *checkpoint, compute, calibration, progress);
  const std::filesystem::path out = output_folder(options, *checkpoint, planned.plan);
  check_output(out, options.force);
  check_apart(out, *checkpoint);

  const ModelConfig config = sliced_config(checkpoint->config(), planned.plan);
  const at::ScalarType dtype = output_dtype(options, *checkpoint);
  const SizeChange change = size_change(*checkpoint, config, dtype);
  const TokenWindows& windows = calibration.text().windows;
  CheckpointWriter writer(out, checkpoint_tensors(config, dtype), options.force);
  const LayerWalk walk(*checkpoint, compute, windows.length, progress);
  slice_model(walk, planned.plan, windows,
              {[&](const std::string& name, const at::Tensor& values) { writer.write(name, values); },
               [&](const std::string& name, int64_t begin, const at::Tensor& rows) {
                 writer.write_rows(name, begin, rows);
               }});

  write_tokenizer_files(checkpoint->path(), writer.folder());
  writer.write_text("config.json", to_text(write_config(config, torch_dtype_name(dtype))));
  const OrderedJson run_description = describe_run(options.common, compute, *checkpoint);
  OrderedJson json =
      dynslice_json(options, planned, run_description, calibration.text(), change, hash_sources(*checkpoint, progress));
  writer.write_text("dynslice.json", to_text(json));
  writer.commit();

  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (options.common.json) {
    json["wall_seconds"] = seconds;
    json["peak_rss_bytes"] = peak_rss_bytes();
    json["output"] = out.string();
    std::cout << to_text(json);
    return;
  }
  print_plan(planned.plan, planned.scores, change);
  std::cout << "Calibrated on " << windows.count << " windows of " << windows.length << " tokens in "
            << dtype_name(compute.dtype) << " on " << compute.device.str() << "; " << format_duration(seconds)
            << ", peak memory " << format_bytes(peak_rss_bytes()) << ".\nWritten to " << out.string()
            << ". Next: dynslice eval " << out.string() << " --ppl wikitext2\n";
}

}  // namespace dynslice::cli
