#include "checkpoint/gguf_form.h"

#include <utility>

#include "aten.h"
#include "dynslice/model/architecture.h"
#include "dynslice/model/tensor_layout.h"

namespace dynslice {
namespace {

// Value heads of `width` rows each, behind `before` rows that stay.
std::vector<int64_t> heads_in_turns(const DeltaShape& delta, int64_t width, int64_t before) {
  std::vector<int64_t> rows;
  for (int64_t row = 0; row < before; ++row) rows.push_back(row);
  const int64_t each = delta.value_heads / delta.key_heads;
  for (int64_t turn = 0; turn < each; ++turn) {
    for (int64_t key = 0; key < delta.key_heads; ++key) {
      for (int64_t row = 0; row < width; ++row) rows.push_back(before + (key * each + turn) * width + row);
    }
  }
  return rows;
}

}  // namespace

GgufForm gguf_form(const ModelConfig& config, const std::string& name) {
  GgufForm form;
  const auto place = split_layer_name(name);
  const LayerPart* part = place ? find_part(place->second) : nullptr;
  if (part == nullptr || place->first >= config.num_layers()) return form;
  const DeltaShape& delta = config.layers[static_cast<size_t>(place->first)].delta;
  if (delta.key_heads == 0) return form;
  form.is_rate = part->role == Role::kDeltaRate;
  if (delta.key_heads == delta.value_heads) return form;
  switch (part->role) {
    case Role::kDeltaInput:
    case Role::kDeltaConvolution:
      form.rows = heads_in_turns(delta, delta.value_dim, 2 * delta.keys());
      break;
    case Role::kDeltaGate:
      form.rows = heads_in_turns(delta, delta.value_dim, 0);
      break;
    case Role::kDeltaBeta:
    case Role::kDeltaDecay:
    case Role::kDeltaStep:
    case Role::kDeltaRate:
      form.rows = heads_in_turns(delta, 1, 0);
      break;
    case Role::kDeltaOutput:
      form.column_parts = heads_in_turns(delta, 1, 0);
      form.part_width = delta.value_dim;
      break;
    default:
      break;
  }
  return form;
}

std::vector<int64_t> inverse_order(const std::vector<int64_t>& order) {
  std::vector<int64_t> inverse(order.size());
  for (size_t i = 0; i < order.size(); ++i) inverse[static_cast<size_t>(order[i])] = static_cast<int64_t>(i);
  return inverse;
}

at::Tensor reordered_columns(const at::Tensor& rows, const std::vector<int64_t>& order) {
  const auto parts = static_cast<int64_t>(order.size());
  return rows.view({rows.size(0), parts, -1}).index_select(1, at::tensor(order)).view(rows.sizes());
}

}  // namespace dynslice
