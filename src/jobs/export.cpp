#include "dynslice/jobs/export.h"

#include <chrono>
#include <utility>
#include <variant>

#include "dynslice/jobs/checkpoint_output.h"
#include "dynslice/jobs/inputs.h"
#include "dynslice/support/log.h"
#include "dynslice/walk/walk_estimate.h"
#include "jobs/ggml_types.h"

namespace dynslice {
namespace {

constexpr GgmlType kExportTypes[] = {GgmlType::kF32,  GgmlType::kF16,  GgmlType::kBF16, GgmlType::kQ8_0,
                                     GgmlType::kQ6_K, GgmlType::kQ5_K, GgmlType::kQ4_K, GgmlType::kQ3_K,
                                     GgmlType::kQ2_K, GgmlType::kQ5_1, GgmlType::kQ5_0, GgmlType::kQ4_1,
                                     GgmlType::kQ4_0};

std::filesystem::path export_file(const ExportRequest& options, const Checkpoint& checkpoint, const std::string& type) {
  if (!options.output.empty()) return options.output;
  return model_name(options.common, checkpoint) + "-" + type + ".gguf";
}

}  // namespace

OrderedJson to_json(const ExportResult& result) {
  OrderedJson json;
  json["format"] = "gguf";
  json["architecture"] = result.file.architecture;
  json["type"] = result.type;
  json["tensors"] = result.file.tensors;
  json["parameters"] = result.parameters;
  json["bytes"] = result.file.bytes;
  json["bytes_by_type"] = result.file.bytes_by_type;
  json["notices"] = result.file.notices;
  add_cost(json, result.seconds, result.peak);
  json["output"] = result.output.string();
  return json;
}

Outcome<ExportResult> run(const ExportRequest& options, ProgressSink& progress) {
  const auto start = std::chrono::steady_clock::now();
  const auto checkpoint = open_model(options.common, progress);
  const std::string type =
      options.type.empty() ? ggml_type_name(ggml_float_type(checkpoint->storage_dtype())) : options.type;
  const std::filesystem::path out = export_file(options, *checkpoint, type);
  check_output_file(out);
  const GgmlType matrices = parse_ggml_type("--type", type, kExportTypes);
  if (options.common.dry_run) {  // a conversion goes tensor by tensor, and has no need to be fitted into the memory
    const uint64_t bytes = gguf_tensor_bytes(*checkpoint, {.type = matrices});
    const auto estimator = [&](const ComputeOptions&, int64_t) { return estimate_conversion(*checkpoint, bytes); };
    return std::get<DryRun>(prepare(options.common, *checkpoint, {},
                                    {.verb = "export", .estimator = estimator, .stream_bytes = 0, .output = out}));
  }
  ExportResult result;
  result.type = type;
  result.file = export_gguf(*checkpoint, out, {.type = matrices, .force = options.common.force}, progress);
  result.parameters = count_cost(checkpoint->config()).parameters;
  result.seconds = seconds_since(start);
  result.peak = peak_memory({});
  result.output = out;
  for (const std::string& notice : result.file.notices) log(LogLevel::kWarning, notice);
  return result;
}

}  // namespace dynslice
