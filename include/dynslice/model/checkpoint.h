// The weights of a model on disk: names, shapes, and one tensor at a time in memory.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "dynslice/model/config.h"

namespace dynslice {

struct TensorInfo {
  std::string name;  // Hugging Face's: model.layers.0.self_attn.q_proj.weight
  std::vector<int64_t> shape;
  std::string dtype;   // "BF16", "F32", "Q4_1"; "I4" of a matrix of packed integers
  uint64_t bytes = 0;  // on disk, with scales and zero points
};

// Guarantees: names and shapes are Hugging Face's for every source format; a tensor that is loaded has memory of
// its own; nothing is kept in memory by the checkpoint itself; `load` and `load_rows` may be called from several
// threads.
class Checkpoint {
 public:
  virtual ~Checkpoint() = default;

  [[nodiscard]] const ModelConfig& config() const { return config_; }
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }  // folder or .gguf file

  [[nodiscard]] virtual std::vector<TensorInfo> tensors() const = 0;
  [[nodiscard]] virtual const TensorInfo* find(const std::string& name) const = 0;  // nullptr when there is none
  // Files the checkpoint is read from, for hashes and provenance.
  [[nodiscard]] virtual std::vector<std::filesystem::path> files() const = 0;
  // What the weights are stored as: the source's dtype (of packed integers that of their scales), bfloat16 for
  // quantized GGUF files.
  [[nodiscard]] virtual at::ScalarType storage_dtype() const = 0;

  // The tensor as `dtype` on the CPU, contiguous. Throws kBadInput naming file and tensor when it is missing,
  // its shape is not `expected_shape`, or it holds NaN or Inf.
  [[nodiscard]] at::Tensor load(const std::string& name, const std::vector<int64_t>& expected_shape,
                                at::ScalarType dtype) const;

  // Rows [begin, end) of a matrix of shape `expected_shape`; the same checks (NaN in these rows only).
  [[nodiscard]] at::Tensor load_rows(const std::string& name, const std::vector<int64_t>& expected_shape, int64_t begin,
                                     int64_t end, at::ScalarType dtype) const;

 protected:
  // The file that holds the tensor, for messages.
  virtual std::filesystem::path file_of(const TensorInfo& info) const = 0;
  // Rows [begin, end) of dimension 0 (of a scalar: its one value), values unchecked; memory of its own.
  virtual at::Tensor read_rows(const TensorInfo& info, int64_t begin, int64_t end, at::ScalarType dtype) const = 0;

  ModelConfig config_;
  std::filesystem::path path_;
};

// Throws kBadInput, naming the checkpoint: it has no tensor of that name.
[[noreturn]] void throw_missing_tensor(const Checkpoint& checkpoint, const std::string& name);
// Throws kBadInput, naming `file` and tensor, when its shape is another one.
void check_tensor_shape(const std::filesystem::path& file, const TensorInfo& info,
                        const std::vector<int64_t>& expected);

// Of all tensors, as they are stored.
[[nodiscard]] uint64_t stored_bytes(const Checkpoint& checkpoint);

}  // namespace dynslice
