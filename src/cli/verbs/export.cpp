#include <chrono>
#include <iostream>

#include "cli/verbs/prepare_and_show.h"
#include "cli/verbs/verbs.h"
#include "dynslice/checkpoint/gguf_export.h"
#include "dynslice/jobs/checkpoint_output.h"
#include "dynslice/jobs/ggml_types.h"
#include "dynslice/jobs/inputs.h"
#include "dynslice/jobs/prepare.h"
#include "dynslice/support/error.h"
#include "dynslice/support/log.h"
#include "dynslice/walk/walk_estimate.h"

namespace dynslice::cli {
namespace {

constexpr GgmlType kTypes[] = {GgmlType::kF32,  GgmlType::kF16,  GgmlType::kBF16, GgmlType::kQ8_0, GgmlType::kQ6_K,
                               GgmlType::kQ5_K, GgmlType::kQ4_K, GgmlType::kQ3_K, GgmlType::kQ2_K, GgmlType::kQ5_1,
                               GgmlType::kQ5_0, GgmlType::kQ4_1, GgmlType::kQ4_0};

std::filesystem::path output_file(const ExportRequest& options, const Checkpoint& checkpoint, const std::string& type) {
  if (!options.output.empty()) return options.output;
  return model_name(options.common, checkpoint) + "-" + type + ".gguf";
}

}  // namespace

void run(const ExportRequest& options, TerminalProgress& progress) {
  const auto start = std::chrono::steady_clock::now();
  const auto checkpoint = open_model(options.common, progress);
  const std::string type =
      options.type.empty() ? ggml_type_name(ggml_float_type(checkpoint->storage_dtype())) : options.type;
  const std::filesystem::path out = output_file(options, *checkpoint, type);
  check_output_file(out);
  const GgmlType matrices = parse_ggml_type("--type", type, kTypes);
  if (options.common.dry_run) {
    const uint64_t bytes = gguf_tensor_bytes(*checkpoint, {matrices});
    prepare_or_show(
        options.common, *checkpoint, {},
        {"export", [&](const ComputeOptions&, int64_t) { return estimate_conversion(*checkpoint, bytes); }, 0, out});
    return;
  }
  const GgufExport result = export_gguf(*checkpoint, out, {matrices, options.common.force}, progress);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();

  for (const std::string& notice : result.notices) log(LogLevel::kWarning, notice);
  if (options.common.json) {
    OrderedJson json;
    json["format"] = "gguf";
    json["architecture"] = result.architecture;
    json["type"] = type;
    json["tensors"] = result.tensors;
    json["parameters"] = count_cost(checkpoint->config()).parameters;
    json["bytes"] = result.bytes;
    json["bytes_by_type"] = result.bytes_by_type;
    json["notices"] = result.notices;
    json["wall_seconds"] = seconds;
    json["peak_rss_bytes"] = peak_rss_bytes();
    json["output"] = out.string();
    std::cout << to_text(json);
    return;
  }
  std::cout << "Written to " << out.string() << ": " << result.architecture << ", " << result.tensors << " tensors, "
            << format_bytes(result.bytes) << " (" << type << "), " << format_duration(seconds) << ", peak memory "
            << format_bytes(peak_rss_bytes()) << ".\n";
}

}  // namespace dynslice::cli
