// What the estimates of all methods are made of: the memory of a walk, of embedding and head, and its work.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "dynslice/model/checkpoint.h"
#include "dynslice/resources/estimate.h"
#include "dynslice/walk/layer_walk.h"

namespace dynslice {

[[nodiscard]] inline uint64_t u64(int64_t value) { return static_cast<uint64_t>(std::max<int64_t>(0, value)); }
[[nodiscard]] inline int64_t element_bytes(at::ScalarType dtype) {
  return static_cast<int64_t>(c10::elementSize(dtype));
}

template <typename PerLayer>
[[nodiscard]] int64_t largest_of_layers(const ModelConfig& config, PerLayer per_layer) {
  int64_t largest = 0;
  for (const LayerShape& shape : config.layers) largest = std::max(largest, per_layer(shape));
  return largest;
}

// Of the memory that everything else is in as well: a device's does not hold the program.
[[nodiscard]] MemoryPart program_part(at::Device device);

[[nodiscard]] int64_t layer_parameters(const LayerShape& shape);

// Rows times columns of the largest linear: products may repack it.
[[nodiscard]] int64_t largest_linear(const LayerShape& shape);

// What one chunk needs on its way through half a layer, MLP or attention.
[[nodiscard]] int64_t chunk_bytes(const ModelConfig& config, const ComputeOptions& compute, TextAmount text);

[[nodiscard]] int64_t stream_bytes(const ModelConfig& config, TextAmount text);

// With the shortcuts, whose larger ones are fp32.
[[nodiscard]] int64_t layer_bytes(const ModelConfig& config, at::ScalarType dtype);

// A layer's weights and everything a chunk needs; the same for every verb that walks.
[[nodiscard]] std::vector<MemoryPart> walking_parts(const Checkpoint& checkpoint, const ComputeOptions& compute,
                                                    TextAmount text);

// Blocks of the embedding matrix, as stored and in fp32.
[[nodiscard]] std::vector<MemoryPart> embedding_parts(const ModelConfig& config, const ComputeOptions& compute);

[[nodiscard]] std::vector<MemoryPart> head_parts(const ModelConfig& config, const ComputeOptions& compute,
                                                 TextAmount text);

// Two heads side by side, with rows and logits in fp32.
[[nodiscard]] std::vector<MemoryPart> compared_head_parts(const ModelConfig& first, const ModelConfig& second,
                                                          const ComputeOptions& compute, TextAmount text);

[[nodiscard]] double attention_flops(const ModelConfig& config, TextAmount text);

[[nodiscard]] Work walking_work(const Checkpoint& checkpoint, TextAmount text, int64_t walks);

// A model that is in memory as a whole: `runs` times prompts of a batch, and then its tokens one at a time.
struct ResidentUse {
  int64_t batch = 1;
  int64_t prompt_tokens = 0;
  int64_t decode_tokens = 0;
  int64_t runs = 1;
};
[[nodiscard]] ResourceEstimate estimate_resident(const Checkpoint& checkpoint, const ComputeOptions& compute,
                                                 const ResidentUse& use);
// Adds one more that is in memory at the same time, its weights and cache as parts that begin with `prefix`.
void add_resident(ResourceEstimate& estimate, const Checkpoint& other, const ComputeOptions& compute,
                  const ResidentUse& use, const std::string& prefix);

// Writing the weights in another format, a chunk of a tensor at a time.
[[nodiscard]] ResourceEstimate estimate_conversion(const Checkpoint& checkpoint, uint64_t output_bytes);

}  // namespace dynslice
