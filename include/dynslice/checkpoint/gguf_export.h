// A model as a GGUF file that llama.cpp runs.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "dynslice/formats/gguf/gguf_file.h"
#include "dynslice/model/checkpoint.h"
#include "dynslice/support/progress.h"

namespace dynslice {

// Why llama.cpp cannot run such a model, naming the first shape that it has no place for; nothing when it can.
[[nodiscard]] std::optional<std::string> gguf_obstacle(const ModelConfig& config);

struct GgufExportOptions {
  // Of the matrices. Norms and biases are F32. Embedding and head have Q6_K in the place of a K format with fewer bits.
  // Where rows are no multiple of 256 values, a format with blocks of 32 stands in for a K format, and F16 for that.
  GgmlType type = GgmlType::kBF16;
  bool force = false;  // replace an existing GGUF file
  // Types of single tensors, by Hugging Face's names, in the place of what `type` gives them.
  std::map<std::string, GgmlType> types = {};
  // Tensors that are encoded already, in the type that `types` has: rows [begin, end) as uint8 [rows, bytes of a row],
  // in the order of Hugging Face's rows.
  std::function<bool(const std::string& name)> is_encoded = {};
  std::function<at::Tensor(const std::string& name, int64_t begin, int64_t end)> encoded_rows = {};
  std::string record = {};  // JSON that tells where the weights come from; goes into the metadata as dynslice.record
};

// Bytes of the tensors of such a file; its metadata, mostly the tokenizer, come on top. Throws kBadInput with
// gguf_obstacle's words.
[[nodiscard]] uint64_t gguf_tensor_bytes(const Checkpoint& checkpoint, const GgufExportOptions& options);

struct GgufExport {
  std::string architecture;  // "llama", "deci" (layers of different sizes), "qwen2"
  uint64_t bytes = 0;        // of the file
  int64_t tensors = 0;
  std::map<std::string, uint64_t> bytes_by_type;  // of the tensors
  std::vector<std::string> notices;               // what the file cannot say, one line each
};

// What export_gguf refuses before it writes anything, for whoever has hours of work to do before that: shapes and
// tokenizers that GGUF has no place for, and an `out` that is there. The errors are export_gguf's.
void check_gguf_export(const Checkpoint& checkpoint, const std::filesystem::path& out, bool force);

// Writes `out` with the model's weights, shapes, tokenizer and chat template. One chunk of one tensor is in memory at a
// time. Throws kBadInput with gguf_obstacle's words, for a tokenizer that GGUF cannot describe, and for values too
// large for the type; kUsage when `out` exists and not `force`, or is the model that is read.
[[nodiscard]] GgufExport export_gguf(const Checkpoint& checkpoint, const std::filesystem::path& out,
                                     const GgufExportOptions& options, ProgressSink& progress);

}  // namespace dynslice
