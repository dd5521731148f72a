// Matrices in ggml's block formats, kept in a safetensors file until a GGUF file is made of them: that one is written
// from its beginning to its end, while quantizing may be stopped and resumed between any two layers.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "dynslice/checkpoint/checkpoint_writer.h"
#include "dynslice/model/config.h"
#include "dynslice/model/tensor_layout.h"
#include "dynslice/quantize/quantize.h"

namespace dynslice {

// The format of a level of `bits` that is to be stored as `wanted` in rows of so many columns; another type stands in
// where they are not whole blocks of it. Throws kUsage when rows are no multiple of 32.
[[nodiscard]] QuantFormat block_format(GgmlType wanted, int bits, int64_t columns);

// The matrices of all layers as uint8 tensors [rows, bytes of a row], under their names in the checkpoint.
[[nodiscard]] std::vector<OutputTensor> block_tensors(const ModelConfig& config, const FormatOf& format_of);

// Reads them back.
class BlockFile {
 public:
  // `folder` is what a CheckpointWriter with block_tensors wrote as one file. Throws as SafetensorsFile does.
  explicit BlockFile(const std::filesystem::path& folder);
  ~BlockFile();
  BlockFile(const BlockFile&) = delete;
  BlockFile& operator=(const BlockFile&) = delete;

  [[nodiscard]] bool contains(const std::string& name) const;
  // Rows [begin, end) of tensor `name`, a copy. Throws kBadInput when it is not what was announced.
  [[nodiscard]] at::Tensor rows(const std::string& name, int64_t begin, int64_t end) const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace dynslice
