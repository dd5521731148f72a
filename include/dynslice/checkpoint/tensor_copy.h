// Tensors that go from one checkpoint to another as they are.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "dynslice/checkpoint/checkpoint_writer.h"
#include "dynslice/model/checkpoint.h"
#include "dynslice/model/tensor_layout.h"
#include "dynslice/support/progress.h"

namespace dynslice {

// Writes the source's tensor `name` as `tensor`, a block of rows at a time; progress counts its values.
void copy_tensor(const Checkpoint& source, const std::string& name, const OutputTensor& tensor,
                 CheckpointWriter& writer, ProgressTask& task);

// What a checkpoint holds beside its language model, in the dtypes that it has: nothing, in most. Throws kBadInput for
// a dtype that is not copied.
[[nodiscard]] std::vector<OutputTensor> other_tensors(const Checkpoint& source);

// Copies those of `tensors` that `stays` says stay as they are, under their own names.
void copy_tensors(const Checkpoint& source, const std::vector<OutputTensor>& tensors,
                  const std::function<bool(const std::string& name)>& stays, const std::string& title,
                  CheckpointWriter& writer, ProgressSink& progress);

}  // namespace dynslice
