// A model as a GGUF file that llama.cpp runs.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "dynslice/model/checkpoint.h"
#include "dynslice/support/gguf_file.h"
#include "dynslice/support/progress.h"

namespace dynslice {

// Why llama.cpp cannot run such a model, naming the first shape that it has no place for; nothing when it can.
std::optional<std::string> gguf_obstacle(const ModelConfig& config);

struct GgufExportOptions {
  // Of the matrices. Norms and biases are F32. Embedding and head have Q6_K in the place of a K format with fewer bits.
  // Where rows are no multiple of 256 values, a format with blocks of 32 stands in for a K format, and F16 for that.
  GgmlType type = GgmlType::kBF16;
  bool force = false;  // replace an existing GGUF file
};

// Bytes of the tensors of such a file; its metadata, mostly the tokenizer, come on top. Throws kBadInput with
// gguf_obstacle's words.
uint64_t gguf_tensor_bytes(const Checkpoint& checkpoint, GgmlType type);

struct GgufExport {
  std::string architecture;  // "llama", "qwen2"
  uint64_t bytes = 0;        // of the file
  int64_t tensors = 0;
  std::map<std::string, uint64_t> bytes_by_type;  // of the tensors
  std::vector<std::string> notices;               // what the file cannot say, one line each
};

// Writes `out` with the model's weights, shapes, tokenizer and chat template. One chunk of one tensor is in memory at a
// time. Throws kBadInput with gguf_obstacle's words, for a tokenizer that GGUF cannot describe, and for values too
// large for the type; kUsage when `out` exists and not `force`, or is the model that is read.
GgufExport export_gguf(const Checkpoint& checkpoint, const std::filesystem::path& out, const GgufExportOptions& options,
                       ProgressSink& progress);

}  // namespace dynslice
