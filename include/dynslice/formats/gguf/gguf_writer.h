// Writes a GGUF file (version 3) tensor by tensor, and lets it appear only when it is whole.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "dynslice/formats/gguf/gguf_file.h"

namespace dynslice {

// In the order in which it is written. Integers become uint32 where they fit (else int64), floats float32, items of
// integer arrays int32 where all fit (else int64): the types that llama.cpp asks for.
using GgufMetadata = std::vector<std::pair<std::string, GgufValue>>;

struct GgufOutputTensor {
  std::string name;
  std::vector<int64_t> shape;  // outermost first, as PyTorch has it; columns are a multiple of the type's block
  GgmlType type = GgmlType::kF32;
};

// Its bytes, without padding. Throws std::logic_error when its rows are not whole blocks.
[[nodiscard]] uint64_t count_bytes(const GgufOutputTensor& tensor);

// Guarantees: everything goes to `OUT.partial`, is synced, and renamed to `OUT` by `commit`; without `commit` the
// destructor removes it. The bytes depend on metadata and tensors only.
class GgufWriter {
 public:
  // Throws kUsage when `out` exists and not `force`, or is something else than a GGUF file; kOutOfResources, before
  // anything is written, when the disk lacks the room.
  GgufWriter(const std::filesystem::path& out, const GgufMetadata& metadata, std::vector<GgufOutputTensor> tensors,
             bool force);
  ~GgufWriter();
  GgufWriter(const GgufWriter&) = delete;
  GgufWriter& operator=(const GgufWriter&) = delete;

  // Appends to tensor `name`. Tensors are written in the order in which they were announced, each of them whole.
  // Throws std::logic_error otherwise; kOutOfResources when the disk is full.
  void write(const std::string& name, std::span<const std::byte> bytes);

  // Checks that every tensor is whole, syncs, and renames.
  void commit();

  // The file as far as it is written; whole once every tensor is.
  [[nodiscard]] const std::filesystem::path& partial() const;
  [[nodiscard]] uint64_t file_bytes() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace dynslice
