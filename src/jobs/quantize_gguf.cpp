#include "jobs/quantize_gguf.h"

#include "dynslice/formats/gguf/gguf_file.h"
#include "dynslice/jobs/checkpoint_output.h"
#include "dynslice/jobs/journaling.h"
#include "dynslice/quantize/gguf_blocks.h"
#include "dynslice/support/error.h"
#include "dynslice/support/log.h"
#include "jobs/ggml_types.h"

namespace dynslice {

GgufExportOptions gguf_options(const Quantizing& in, const FormatOf& format_of) {
  GgufExportOptions options;
  options.type = ggml_float_type(in.dtype());
  options.force = in.options.common.force;
  const ModelConfig& config = in.config();
  for (int64_t layer = 0; layer < config.num_layers(); ++layer) {
    for (const LinearShape& matrix : linear_shapes(config, layer)) {
      options.types[layer_tensor_name(layer, matrix.module + ".weight")] = *format_of(layer, matrix.columns).block_type;
    }
  }
  if (!in.options.embeddings.empty()) {
    const GgmlType type = parse_block_type("--embeddings", in.options.embeddings);
    options.types["model.embed_tokens.weight"] = *block_format(type, 8, config.embedding_columns()).block_type;
    options.types["lm_head.weight"] = *block_format(type, 8, config.head_columns()).block_type;
  }
  return options;
}

void remove_blocks(const std::filesystem::path& blocks) {
  std::error_code error;
  std::filesystem::remove_all(blocks, error);  // no more than room is lost when it stays
}

std::optional<OrderedJson> gguf_record(const std::filesystem::path& file, const OrderedJson& run_description) {
  constexpr const char* kKey = "dynslice.record";
  std::error_code error;
  if (!std::filesystem::exists(file, error)) return std::nullopt;
  const GgufFile gguf(file);
  return gguf.has(kKey) ? record_of_job(gguf.string(kKey), file.string(), run_description) : std::nullopt;
}

void write_gguf(const Quantizing& in, const FormatOf& format_of, const std::filesystem::path& blocks,
                const std::filesystem::path& out, const OrderedJson& record, ProgressSink& progress) {
  try {
    const BlockFile file(blocks);
    GgufExportOptions options = gguf_options(in, format_of);
    options.record = to_text(record);
    options.is_encoded = [&](const std::string& name) { return file.contains(name); };
    options.encoded_rows = [&](const std::string& name, int64_t begin, int64_t end) {
      return file.rows(name, begin, end);
    };
    for (const std::string& notice : export_gguf(in.checkpoint, out, options, progress).notices)
      log(LogLevel::kWarning, notice);
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kInterrupted && error.kind() != ErrorKind::kOutOfResources) throw;
    throw_error(error.kind(), error.what(),
                "; the matrices are quantized; to write the file: ", resuming_command(in.options.common));
  }
  remove_blocks(blocks);
}

}  // namespace dynslice
