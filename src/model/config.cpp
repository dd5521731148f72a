#include "dynslice/model/config.h"

#include <algorithm>

#include "dynslice/model/architecture.h"

namespace dynslice {

bool ModelConfig::is_sliced() const {
  return embedding_width != hidden_size || head_width != hidden_size ||
         std::ranges::any_of(layers, [](const LayerShape& shape) {
           return shape.attn_shortcut.kind != ShortcutKind::kIdentity ||
                  shape.mlp_shortcut.kind != ShortcutKind::kIdentity;
         });
}

bool ModelConfig::has_whole_layers() const {
  const bool is_gated = architecture_of(*this).is_gated;
  return std::ranges::all_of(
      layers, [&](const LayerShape& shape) { return shape.has_attention() && shape.is_gated == is_gated; });
}

const LayerShape* ModelConfig::first_that_slides(bool is_sliding) const {
  for (size_t i = 0; i < layers.size(); ++i) {
    if (slides(i) == is_sliding) return &layers[i];
  }
  return nullptr;
}

namespace {

// Whether heads are as config.json can say it where layers that see all have their own, and else are as those that
// slide; the last layer sees all, whatever layer_types says of it.
bool has_usual_global_heads(const ModelConfig& config) {
  const LayerShape *sliding = config.first_that_slides(true), *global = config.first_that_slides(false);
  if (global == nullptr || config.slides(config.layers.size() - 1)) return false;
  if (sliding == nullptr) return true;
  if (!sliding->has_values || (global->has_values && global->num_key_value_heads != sliding->num_key_value_heads))
    return false;
  LayerShape same = *sliding;
  same.head_dim = global->head_dim;
  same.num_key_value_heads = global->num_key_value_heads;
  same.has_values = global->has_values;
  return same == *global;
}

}  // namespace

bool ModelConfig::is_ordinary() const {
  if (embedding_width != hidden_size || head_width != hidden_size || !has_final_norm_weight) return false;
  if (has_embedding_rotation || has_head_rotation) return false;
  // Divisors that are no known scaling have no place in a transformers config.
  if (!rope.frequency_divisors.empty() && rope.scaling == RopeScalingKind::kNone) return false;
  const LayerShape& first = layers.front();
  const bool has_head_sizes = first.num_attention_heads == first.num_key_value_heads &&
                              first.num_attention_heads * first.head_dim == hidden_size;
  if (architecture_of(*this).has_positions() && !has_head_sizes) return false;  // OPT's config has no key for them
  const bool has_global_heads = architecture_of(*this).global_head_dim > 0;
  if (has_global_heads && !has_usual_global_heads(*this)) return false;
  const auto first_alike = [&](size_t layer) { return has_global_heads ? *first_that_slides(slides(layer)) : first; };
  size_t index = 0;
  return has_whole_layers() && std::ranges::all_of(layers, [&](const LayerShape& shape) {
           LayerShape same = first_alike(index++);  // but for what mixes the tokens, which layer_types tells
           same.delta = shape.delta;
           return shape == same && shape.input_width == hidden_size && shape.middle_width == hidden_size &&
                  shape.output_width == hidden_size && shape.attn_shortcut == ShortcutShape{} &&
                  shape.mlp_shortcut == ShortcutShape{} && shape.has_norm_weights;
         });
}

bool ModelConfig::is_wrapped() const {
  return !wrapper.is_null() && is_ordinary() && source.value("hidden_size", int64_t{0}) == hidden_size;
}

namespace {

// What one layer costs: multiply-adds, and parameters that are no factor of a product (biases, norms).
ModelCost count_layer(const ModelConfig& config, const LayerShape& shape) {
  ModelCost cost;
  for (const LayerPart& part : layer_parts()) {
    if (!part.is_in(shape)) continue;
    const int64_t rows = part.rows(shape);
    if (part.is_linear()) cost.multiply_adds_per_token += rows * part.columns(shape);
    if (!part.is_linear()) cost.parameters += rows * (part.taps != nullptr ? part.taps(shape) : 1);
    if (part.has_bias(config)) cost.parameters += rows;
  }
  cost.parameters += cost.multiply_adds_per_token +
                     shortcut_parameters(shape.attn_shortcut, shape.input_width, shape.middle_width) +
                     shortcut_parameters(shape.mlp_shortcut, shape.middle_width, shape.output_width);
  cost.multiply_adds_per_token += shortcut_multiply_adds(shape.attn_shortcut, shape.input_width, shape.middle_width) +
                                  shortcut_multiply_adds(shape.mlp_shortcut, shape.middle_width, shape.output_width);
  return cost;
}

}  // namespace

int64_t shortcut_parameters(const ShortcutShape& shortcut, int64_t in, int64_t out) {
  switch (shortcut.kind) {
    case ShortcutKind::kIdentity:
      return 0;
    case ShortcutKind::kMatrix:
      return in * out;
    case ShortcutKind::kSymmetric:
      return shortcut.rank * in;
    case ShortcutKind::kLowRank:
      return shortcut.rank * (in + out);
  }
  return 0;
}

int64_t shortcut_multiply_adds(const ShortcutShape& shortcut, int64_t in, int64_t out) {
  // Aᵀ A is one matrix, used twice.
  return (shortcut.kind == ShortcutKind::kSymmetric ? 2 : 1) * shortcut_parameters(shortcut, in, out);
}

ModelCost count_cost(const ModelConfig& config) {
  ModelCost total;
  for (const LayerShape& shape : config.layers) {
    const ModelCost layer = count_layer(config, shape);
    total.parameters += layer.parameters;
    total.multiply_adds_per_token += layer.multiply_adds_per_token;
  }
  const int64_t head = config.vocab_size * config.head_columns();
  const int64_t rotations = (config.has_embedding_rotation ? config.hidden_size * config.embedding_width : 0) +
                            (config.has_head_rotation ? config.hidden_size * config.head_width : 0);
  total.multiply_adds_per_token += head + rotations;
  total.parameters += config.vocab_size * config.embedding_columns() + rotations;
  if (!config.tie_word_embeddings) total.parameters += head;
  if (config.has_final_norm_weight) total.parameters += config.head_width;
  if (config.has_centred_norms) total.parameters += config.head_columns();
  total.parameters += config.position_rows * config.embedding_columns();
  return total;
}

}  // namespace dynslice
