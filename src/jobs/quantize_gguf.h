// The GGUF file that `quantize --gguf` makes of the blocks of all layers and of what stays as it is.
#pragma once

#include <filesystem>
#include <optional>

#include "dynslice/checkpoint/gguf_export.h"
#include "jobs/quantizing.h"

namespace dynslice {

// The types of everything in the file.
GgufExportOptions gguf_options(const Quantizing& in, const FormatOf& format_of);

// Writes `out` from the matrices that lie in `blocks`, which goes then. `record` travels in the metadata.
void write_gguf(const Quantizing& in, const FormatOf& format_of, const std::filesystem::path& blocks,
                const std::filesystem::path& out, const OrderedJson& record, ProgressSink& progress);

// Removes them.
void remove_blocks(const std::filesystem::path& blocks);

// The record in `file` when it is there, and what the same command wrote.
std::optional<OrderedJson> gguf_record(const std::filesystem::path& file, const OrderedJson& run_description);

}  // namespace dynslice
