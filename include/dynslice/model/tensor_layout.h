// The names and shapes of all tensors of a checkpoint, from its configuration alone.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "dynslice/model/config.h"

namespace dynslice {

// How a tensor of ours is stored in a checkpoint of this configuration. What dynslice alone reads has our own names and
// values; so has what llama.cpp reads.
struct StoredTensor {
  std::string name;
  double offset = 0;      // what the stored values lack of ours
  int64_t first_row = 0;  // ours begin there, behind those of other tensors of ours
};
[[nodiscard]] StoredTensor stored_tensor(const ModelConfig& config, const std::string& name);

// The names that the rows of the tensor `stored` have with us, in order; itself where it is none of ours.
[[nodiscard]] std::vector<std::string> names_of_stored(const ModelConfig& config, const std::string& stored);

// The shape of one of ours in a layer, by its name there ("mlp.up_proj.weight").
[[nodiscard]] std::vector<int64_t> shape_of_part(const ModelConfig& config, int64_t layer, const std::string& suffix);

// A tensor that is to be written.
struct OutputTensor {
  std::string name;
  std::vector<int64_t> shape;
  at::ScalarType dtype = at::ScalarType::BFloat16;  // or Float, Half; Int or Long of packed weights and their shapes
  StoredTensor stored = {};                         // nameless: as it is

  [[nodiscard]] const std::string& stored_name() const { return stored.name.empty() ? name : stored.name; }
};

// Values, and bytes, of a tensor.
[[nodiscard]] int64_t count_values(const OutputTensor& tensor);
[[nodiscard]] uint64_t count_bytes(const OutputTensor& tensor);

// In the order in which a walk finishes them: embedding, layers, final norm, head. All in `dtype`.
[[nodiscard]] std::vector<OutputTensor> checkpoint_tensors(const ModelConfig& config, at::ScalarType dtype);

// The weights of the linears of one layer, those that a quantizer would quantize: q, k, v, o, gate, up, down, as far as
// the layer has them. No biases, norms or shortcuts.
[[nodiscard]] std::vector<OutputTensor> linear_weights(const ModelConfig& config, int64_t layer, at::ScalarType dtype);
// Whether the tensor of that name, "self_attn.q_proj.weight" or more, is one of them.
[[nodiscard]] bool is_linear_weight(const std::string& name);

// "model.layers.12.mlp.up_proj.weight" → {12, "mlp.up_proj.weight"}; nothing for tensors of no layer.
[[nodiscard]] std::optional<std::pair<int64_t, std::string>> split_layer_name(const std::string& name);

// "[49152, 576]", for messages.
[[nodiscard]] std::string describe_shape(const std::vector<int64_t>& shape);

}  // namespace dynslice
