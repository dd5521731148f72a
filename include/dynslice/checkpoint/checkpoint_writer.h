// Writes a checkpoint folder tensor by tensor, and lets it appear only when it is whole.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "dynslice/model/tensor_layout.h"
#include "dynslice/support/json.h"
#include "dynslice/support/work_folder.h"

namespace dynslice {

// Guarantees: everything is written into `OUT.partial/`, synced, and renamed to `OUT` by `commit`; without
// `commit` the destructor removes it, unless the folder was given and is kept. The bytes of a file depend on the
// tensors only. Tensors may be written in any order; their place in the files is the order in which they were
// announced.
class CheckpointWriter {
 public:
  // Announces all tensors and lays out model.safetensors, or model-0000k-of-0000n.safetensors with an index
  // when there is more than `max_shard_bytes`. Throws kUsage when `out` exists and not `force`;
  // kOutOfResources, before anything is written, when the disk lacks the room.
  CheckpointWriter(const std::filesystem::path& out, std::vector<OutputTensor> tensors, bool force,
                   uint64_t max_shard_bytes = kShardBytes);
  // The same for a run that keeps a journal in `folder` (OUT.partial), whose files are left alone. With `written`,
  // what `written()` gave in an earlier run, the tensors that it names are there already: they are compared with
  // their checksums, and everything else is written again. Throws kBadInput when they are not as they were. `stem` is
  // what the files' names begin with.
  CheckpointWriter(const std::filesystem::path& out, std::vector<OutputTensor> tensors, bool force,
                   std::shared_ptr<WorkFolder> folder, const OrderedJson& written,
                   uint64_t max_shard_bytes = kShardBytes, const std::string& stem = "model");
  ~CheckpointWriter();
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  // The folder that becomes OUT: where the other files (tokenizer) are put before `commit`.
  [[nodiscard]] const std::filesystem::path& folder() const;

  // Converts to the announced dtype and writes; integers are not converted. Throws std::logic_error when name or shape
  // were not announced, the tensor was written before, or other values come where integers were announced;
  // kOutOfResources when the disk is full; kBadInput when the values became NaN or Inf.
  void write(const std::string& name, const at::Tensor& values);

  // The same for rows [begin, begin + rows.size(0)) of a tensor that is too large to be in memory whole. The blocks of
  // a tensor come in order and without a gap; std::logic_error otherwise.
  void write_rows(const std::string& name, int64_t begin, const at::Tensor& rows);

  // Writes a small file (config.json, dynslice.json) of the checkpoint.
  void write_text(const std::string& file_name, const std::string& content);

  // Brings what was written so far to the disk, and gives the names of those tensors with their checksums.
  [[nodiscard]] OrderedJson written() const;

  // Checks that every announced tensor was written, syncs, and renames (replacing an existing OUT when `force`).
  // `before_rename` is called when all is on the disk: the journal's files must go then.
  void commit(const std::function<void()>& before_rename = {});

  // The folder that `out` is written to until it is whole: OUT.partial. Throws kUsage for a name such as "..".
  [[nodiscard]] static std::filesystem::path partial_folder(const std::filesystem::path& out);

  [[nodiscard]] uint64_t tensor_bytes() const;  // of all announced tensors

  static constexpr uint64_t kShardBytes = uint64_t{5} * 1000 * 1000 * 1000;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace dynslice
