// The names and shapes of all tensors of a checkpoint, from its configuration alone.
#pragma once

#include <vector>

#include "dynslice/model/checkpoint_writer.h"
#include "dynslice/model/config.h"

namespace dynslice {

// In the order in which a walk finishes them: embedding, layers, final norm, head. All in `dtype`.
std::vector<OutputTensor> checkpoint_tensors(const ModelConfig& config, at::ScalarType dtype);

}  // namespace dynslice
