// Tensors that go from one checkpoint to another as they are.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "dynslice/model/checkpoint.h"
#include "dynslice/model/checkpoint_writer.h"
#include "dynslice/support/progress.h"

namespace dynslice {

// "model.layers.12.mlp.up_proj.weight" → {12, "mlp.up_proj.weight"}; nothing for tensors of no layer.
std::optional<std::pair<int64_t, std::string>> split_layer_name(const std::string& name);

// Writes the source's tensor `name` as `tensor`, a block of rows at a time; progress counts its values.
void copy_tensor(const Checkpoint& source, const std::string& name, const OutputTensor& tensor,
                 CheckpointWriter& writer, ProgressTask& task);

}  // namespace dynslice
