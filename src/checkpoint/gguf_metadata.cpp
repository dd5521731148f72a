#include "checkpoint/gguf_metadata.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "dynslice/formats/gguf/ggml_quantize.h"
#include "dynslice/model/rope.h"
#include "dynslice/support/check.h"

namespace dynslice {
namespace {

// llama.cpp's enum llama_ftype, which says what most matrices are. It has mixtures of types only for three of the K
// formats; those with the letter S come closest to the plain type.
int64_t file_type(GgmlType type) {
  switch (type) {
    case GgmlType::kF32:
      return 0;
    case GgmlType::kF16:
      return 1;
    case GgmlType::kQ4_0:
      return 2;
    case GgmlType::kQ4_1:
      return 3;
    case GgmlType::kQ8_0:
      return 7;
    case GgmlType::kQ5_0:
      return 8;
    case GgmlType::kQ5_1:
      return 9;
    case GgmlType::kQ2_K:
      return 10;
    case GgmlType::kQ3_K:
      return 11;
    case GgmlType::kQ4_K:
      return 14;
    case GgmlType::kQ5_K:
      return 16;
    case GgmlType::kQ6_K:
      return 18;
    case GgmlType::kBF16:
      return 32;
  }
  throw_broken_invariant("gguf_model_metadata: no file type for this tensor type");
}

template <typename Add>
void add_yarn(const RopeConfig& rope, const Add& add) {
  add("rope.scaling.type", std::string("yarn"));
  add("rope.scaling.factor", rope.factor);
  add("rope.scaling.original_context_length", rope.original_max_position_embeddings);
  add("rope.scaling.attn_factor", rope.attention_factor / yarn_attention_factor(rope.factor));
  if (rope.query_growth != 0) add("attention.temperature_scale", rope.query_growth);
}

// llama.cpp does not heed a window of all layers; readers that know Mistral do.
template <typename Add>
void add_window(const ModelConfig& config, const Add& add) {
  const WindowRule rule = architecture_of(config).window;
  if (!config.sliding_window || (rule != WindowRule::kAllLayers && rule != WindowRule::kByPattern)) return;
  add("attention.sliding_window", *config.sliding_window);
  if (rule == WindowRule::kAllLayers) return;
  std::vector<int64_t> slides(config.layers.size(), 1);
  std::ranges::copy(config.layer_is_sliding, slides.begin());
  add("attention.sliding_window_pattern", std::move(slides));
}

// Which layers have a gated delta net, its sizes, and the channels that turn by text, height and width, which for text
// are all the same.
template <typename Add>
void add_delta_layers(const ModelConfig& config, const Add& add) {
  std::vector<int64_t> is_delta;
  for (const LayerShape& shape : config.layers) {
    is_delta.push_back(shape.is_delta() ? 1 : 0);
    if (!shape.is_delta() || std::ranges::count(is_delta, 1) > 1) continue;
    add("ssm.conv_kernel", shape.delta.taps);
    add("ssm.state_size", shape.delta.key_dim);
    add("ssm.group_count", shape.delta.key_heads);
    add("ssm.time_step_rank", shape.delta.value_heads);
    add("ssm.inner_size", shape.delta.values());
  }
  add("attention.recurrent_layers", std::move(is_delta));
  const int64_t pairs = config.rotated_channels(config.layers.front()) / 2;
  add("rope.dimension_sections", std::vector<int64_t>{(pairs + 2) / 3, (pairs + 1) / 3, pairs / 3, 0});
}

// What is multiplied by numbers of the model's own, or capped.
template <typename Add>
void add_scales(const ModelConfig& config, const Add& add) {
  const Architecture& architecture = architecture_of(config);
  if (architecture.has_multipliers) {
    add("attention.scale", config.attention_scale);
    add("embedding_scale", config.embedding_scale);
    add("residual_scale", config.branch_scale);
    add("logit_scale", 1 / config.logit_scale);
  }
  if (architecture.score_cap > 0) {
    add("attn_logit_softcapping", config.score_cap);
    add("final_logit_softcapping", config.logit_cap);
  }
  if (architecture.may_cap_logits) add("final_logit_softcapping", config.logit_cap);  // without it llama.cpp caps at 30
}

// Heads of the layers that slide, where the others have their own. There are no embeddings for every layer, and no
// layers without keys.
template <typename Add>
void add_sliding_heads(const ModelConfig& config, const Add& add) {
  const LayerShape* sliding = config.first_that_slides(true);
  const int64_t width = (sliding != nullptr ? *sliding : config.layers.front()).head_dim;
  for (const char* key : {"attention.key_length_swa", "attention.value_length_swa", "rope.dimension_count_swa"})
    add(key, width);
  add("embedding_length_per_layer_input", int64_t{0});
  add("attention.shared_kv_layers", int64_t{0});
}

}  // namespace

std::string gguf_architecture(const ModelConfig& config) {
  const Architecture& architecture = architecture_of(config);
  // llama.cpp's llama knows one size for all layers; deci is the same computation with sizes layer by layer.
  const bool is_unequal = !has_equal_sizes(config) && !architecture.gguf_of_unequal_layers.empty();
  return std::string(is_unequal ? architecture.gguf_of_unequal_layers : architecture.gguf);
}

bool has_equal_sizes(const ModelConfig& config) {
  const LayerShape& first = config.layers.front();
  return std::ranges::all_of(config.layers, [&](const LayerShape& shape) {
    return shape.intermediate_size == first.intermediate_size &&
           shape.num_attention_heads == first.num_attention_heads &&
           shape.num_key_value_heads == first.num_key_value_heads;
  });
}

GgufMetadata gguf_model_metadata(const ModelConfig& config, const std::string& name, GgmlType type) {
  const LayerShape& shape = config.layers.front();
  const std::string architecture = gguf_architecture(config);
  GgufMetadata metadata = {{"general.architecture", architecture},
                           {"general.type", std::string("model")},
                           {"general.name", name},
                           {"general.file_type", file_type(type)}};
  if (is_quantized(type)) metadata.emplace_back("general.quantization_version", int64_t{2});
  const auto add = [&](const std::string& key, GgufValue value) {
    metadata.emplace_back(architecture + "." + key, std::move(value));
  };
  add("block_count", config.num_layers());
  add("context_length", config.max_position_embeddings);
  add("embedding_length", config.hidden_size);
  const bool alike = has_equal_sizes(config);
  const auto add_size = [&](const std::string& key, int64_t LayerShape::* member) {
    std::vector<int64_t> sizes;
    for (const LayerShape& layer : config.layers) sizes.push_back(layer.*member);
    add(key, alike ? GgufValue(shape.*member) : GgufValue(std::move(sizes)));
  };
  add_size("feed_forward_length", &LayerShape::intermediate_size);
  add("vocab_size", config.vocab_size);
  add_size("attention.head_count", &LayerShape::num_attention_heads);
  add_size("attention.head_count_kv", &LayerShape::num_key_value_heads);
  const LayerShape* global = config.first_that_slides(false);
  const LayerShape& seeing = global != nullptr ? *global : shape;
  add("attention.key_length", seeing.head_dim);
  add("attention.value_length", seeing.head_dim);
  add("attention.layer_norm_rms_epsilon", config.rms_norm_eps);
  add("rope.dimension_count", config.rotated_channels(seeing));
  add("rope.freq_base", config.rope.theta);
  if (config.rope.scaling == RopeScalingKind::kLinear && config.rope.frequency_divisors.empty()) {
    add("rope.scaling.type", std::string("linear"));
    add("rope.scaling.factor", config.rope.factor);
  }
  if (config.rope.scaling == RopeScalingKind::kYarn && config.rope.frequency_divisors.empty())
    add_yarn(config.rope, add);
  if (config.rope.scaling == RopeScalingKind::kLongRope) {
    add("rope.scaling.original_context_length", config.rope.original_max_position_embeddings);
    add("rope.scaling.attn_factor", config.rope.attention_factor);
  }
  add_window(config, add);
  if (config.sliding_rope) add("rope.freq_base_swa", config.sliding_rope->theta);
  add_scales(config, add);
  if (architecture_of(config).global_head_dim > 0) add_sliding_heads(config, add);
  if (architecture_of(config).has_delta_layers()) add_delta_layers(config, add);
  return metadata;
}

double gguf_attention_scale(const ModelConfig& config) {
  if (architecture_of(config).attention_scale > 0) return architecture_of(config).attention_scale;
  const int64_t width = config.num_layers() == architecture_of(config).gguf_layers_of_27b
                            ? config.hidden_size / config.layers.front().num_attention_heads
                            : config.layers.front().head_dim;
  return 1 / std::sqrt(static_cast<double>(width));
}

std::vector<RopeTensor> gguf_rope_tensors(const ModelConfig& config) {
  const RopeConfig& rope = config.rope;
  const auto floats = [](const std::vector<double>& values) {
    return std::vector<float>(values.begin(), values.end());
  };
  if (rope.scaling == RopeScalingKind::kLongRope) {
    return {{kRopeFactorsLong, floats(rope.long_divisors)}, {kRopeFactorsShort, floats(rope.short_divisors)}};
  }
  if (!rope.frequency_divisors.empty()) return {{kRopeFrequencies, floats(rope.frequency_divisors)}};
  if (const LayerShape* global = config.first_that_slides(false); architecture_of(config).turning_share > 0) {
    if (global == nullptr) return {};
    const std::vector<float> frequencies = inverse_frequencies(rope, config.rotated_channels(*global));
    std::vector<float> divisors;
    for (const float frequency : frequencies) divisors.push_back(frequency == 0 ? kStandingDivisor : 1);
    return {{kRopeFrequencies, divisors}};
  }
  if (rope.scaling != RopeScalingKind::kLlama3) return {};
  std::vector<float> divisors;
  const int64_t channels = config.rotated_channels(config.layers.front());
  for (int64_t pair = 0; pair < channels / 2; ++pair) {
    const double exponent = 2.0 * static_cast<double>(pair) / static_cast<double>(channels);
    divisors.push_back(static_cast<float>(llama3_divisor(rope, 2 * std::numbers::pi * std::pow(rope.theta, exponent))));
  }
  return {{kRopeFrequencies, divisors}};
}

}  // namespace dynslice
