#include <algorithm>

#include "dynslice/model/architecture.h"
#include "dynslice/model/config_json.h"

namespace dynslice {
namespace {

Json describe_rope_scaling(const RopeConfig& rope) {
  switch (rope.scaling) {
    case RopeScalingKind::kNone:
      break;
    case RopeScalingKind::kLinear:
      return {{"rope_type", "linear"}, {"factor", rope.factor}};
    case RopeScalingKind::kLlama3:
      return {{"rope_type", "llama3"},
              {"factor", rope.factor},
              {"low_freq_factor", rope.low_freq_factor},
              {"high_freq_factor", rope.high_freq_factor},
              {"original_max_position_embeddings", rope.original_max_position_embeddings}};
    case RopeScalingKind::kYarn: {
      Json yarn = {{"rope_type", "yarn"},
                   {"factor", rope.factor},
                   {"beta_fast", rope.beta_fast},
                   {"beta_slow", rope.beta_slow},
                   {"truncate", rope.truncates},
                   {"attention_factor", rope.attention_factor},
                   {"original_max_position_embeddings", rope.original_max_position_embeddings}};
      if (rope.query_growth != 0) yarn["llama_4_scaling_beta"] = rope.query_growth;
      return yarn;
    }
    case RopeScalingKind::kLongRope:
      return {{"rope_type", "longrope"},
              {"short_factor", rope.short_divisors},
              {"long_factor", rope.long_divisors},
              {"attention_factor", rope.attention_factor},
              {"original_max_position_embeddings", rope.original_max_position_embeddings}};
  }
  return nullptr;
}

Json describe_layer_types(const ModelConfig& config) {
  Json types = Json::array();
  for (size_t i = 0; i < config.layers.size(); ++i) {
    const bool sliding =
        config.sliding_window.has_value() && (config.layer_is_sliding.empty() || config.layer_is_sliding[i]);
    types.push_back(sliding ? "sliding_attention" : "full_attention");
  }
  return types;
}

void describe_window(const ModelConfig& config, Json& out) {
  const WindowRule rule = architecture_of(config).window;
  if (rule == WindowRule::kNone) return;
  out["sliding_window"] = config.sliding_window ? Json(*config.sliding_window) : Json(nullptr);
  if (rule == WindowRule::kByPattern) out["layer_types"] = describe_layer_types(config);
  if (rule != WindowRule::kByLayer) return;
  out["use_sliding_window"] = config.sliding_window.has_value();
  if (config.sliding_window) out["layer_types"] = describe_layer_types(config);
}

void describe_biases(const ModelConfig& config, Json& out) {
  const BiasRule rule = architecture_of(config).biases;
  const bool has_flags = rule == BiasRule::kFlags;
  if (has_flags || rule == BiasRule::kAttentionFlag || rule == BiasRule::kReadersFlag)
    out["attention_bias"] = config.qkv_bias;
  if (rule == BiasRule::kOutputFlag) {
    out["attention_bias"] = config.qkv_bias;
    out["attention_out_bias"] = config.o_bias;
  }
  if (has_flags || rule == BiasRule::kOutputFlag) out["mlp_bias"] = config.mlp_bias;
}

bool all_layers(const ModelConfig& config, int64_t LayerShape::* member) {
  return std::ranges::all_of(config.layers,
                             [&](const LayerShape& shape) { return shape.*member == config.layers.front().*member; });
}

// Overwrites the numbers that differ from what `out` says, and leaves every other key as it came.
void update_changed(const ModelConfig& config, Json& out) {
  const ModelConfig before = parse_dense_config(out, config.model_type, "the source configuration");
  const auto set = [&out](const char* key, const auto& now, const auto& then) {
    if (now != then) out[key] = now;
  };
  set("vocab_size", config.vocab_size, before.vocab_size);
  set("hidden_size", config.hidden_size, before.hidden_size);
  set("head_dim", config.head_dim, before.head_dim);
  set("rms_norm_eps", config.rms_norm_eps, before.rms_norm_eps);
  if (config.hidden_size != before.hidden_size) out["head_dim"] = config.head_dim;  // no longer what the sizes imply
  set("num_hidden_layers", config.num_layers(), before.num_layers());
  set("max_position_embeddings", config.max_position_embeddings, before.max_position_embeddings);
  set("tie_word_embeddings", config.tie_word_embeddings, before.tie_word_embeddings);
  const auto set_shape = [&](const char* key, int64_t LayerShape::* member) {
    if (!all_layers(config, member)) return;
    const int64_t now = config.layers.front().*member;
    if (now == before.layers.front().*member) return;
    if (member == &LayerShape::num_attention_heads) {  // what was implied by their number must not change with it
      out["head_dim"] = config.head_dim;
      out["num_key_value_heads"] = before.layers.front().num_key_value_heads;
    }
    out[key] = now;
  };
  set_shape(std::string(architecture_of(config).size_key).c_str(), &LayerShape::intermediate_size);
  set_shape("num_attention_heads", &LayerShape::num_attention_heads);
  set_shape("num_key_value_heads", &LayerShape::num_key_value_heads);
}

// transformers refuses a layer_types whose length is not the number of layers.
void update_layer_types(const ModelConfig& config, Json& out) {
  if (architecture_of(config).has_delta_layers()) {
    out.erase("full_attention_interval");
    out["layer_types"] = Json::array();
    for (const LayerShape& shape : config.layers)
      out["layer_types"].push_back(shape.is_delta() ? "linear_attention" : "full_attention");
    return;
  }
  const WindowRule rule = architecture_of(config).window;
  if (rule != WindowRule::kByLayer && rule != WindowRule::kByPattern) {
    out.erase("layer_types");
  } else if (rule == WindowRule::kByPattern || config.sliding_window || out.contains("layer_types")) {
    out["layer_types"] = describe_layer_types(config);
  }
}

void describe_delta_layers(const ModelConfig& config, Json& out) {
  update_layer_types(config, out);
  const auto found = std::ranges::find_if(config.layers, &LayerShape::is_delta);
  if (found == config.layers.end()) return;
  out["linear_num_key_heads"] = found->delta.key_heads;
  out["linear_num_value_heads"] = found->delta.value_heads;
  out["linear_key_head_dim"] = found->delta.key_dim;
  out["linear_value_head_dim"] = found->delta.value_dim;
  out["linear_conv_kernel_dim"] = found->delta.taps;
}

// Which layers have rotary embeddings, where not all of them do; transformers wants an entry for every layer.
void update_unrotated(const ModelConfig& config, Json& out) {
  if (architecture_of(config).unrotated_period == 0) return;
  Json flags = Json::array();
  for (size_t i = 0; i < config.layers.size(); ++i)
    flags.push_back(config.layer_is_unrotated.empty() || !config.layer_is_unrotated[i] ? 1 : 0);
  out["no_rope_layers"] = flags;
}

// Which of the two keys depends on the version of transformers that wrote the source.
void set_dtype(Json& out, const std::string& dtype_name) {
  if (out.contains("dtype")) out["dtype"] = dtype_name;
  if (out.contains("torch_dtype") || !out.contains("dtype")) out["torch_dtype"] = dtype_name;
}

const char* name_of(ShortcutKind kind) {
  switch (kind) {
    case ShortcutKind::kIdentity:
      return "identity";
    case ShortcutKind::kMatrix:
      return "matrix";
    case ShortcutKind::kSymmetric:
      return "symmetric";
    case ShortcutKind::kLowRank:
      return "low_rank";
  }
  return "";
}

OrderedJson describe_shortcut(const ShortcutShape& shortcut) {
  return {{"kind", name_of(shortcut.kind)}, {"rank", shortcut.rank}};
}

OrderedJson describe_shape(const LayerShape& shape) {
  OrderedJson out = {{"input_width", shape.input_width},
                     {"middle_width", shape.middle_width},
                     {"output_width", shape.output_width},
                     {"intermediate_size", shape.intermediate_size},
                     {"num_attention_heads", shape.num_attention_heads},
                     {"num_key_value_heads", shape.num_key_value_heads},
                     {"attn_shortcut", describe_shortcut(shape.attn_shortcut)},
                     {"mlp_shortcut", describe_shortcut(shape.mlp_shortcut)},
                     {"norm_weights", shape.has_norm_weights}};
  if (!shape.is_gated) out["gated"] = false;
  return out;
}

OrderedJson describe_slicing(const ModelConfig& config) {
  OrderedJson out = {{"format", kDynsliceFormat},
                     {"embedding_width", config.embedding_width},
                     {"head_width", config.head_width},
                     {"final_norm_weight", config.has_final_norm_weight},
                     {"embedding_rotation", config.has_embedding_rotation},
                     {"head_rotation", config.has_head_rotation}};
  if (!config.rope.frequency_divisors.empty() && config.rope.scaling == RopeScalingKind::kNone) {
    out["rope_frequency_divisors"] = config.rope.frequency_divisors;
  }
  out["layers"] = OrderedJson::array();
  for (const LayerShape& shape : config.layers) out["layers"].push_back(describe_shape(shape));
  return out;
}

}  // namespace

Json describe_dense_config(const ModelConfig& config) {
  const LayerShape& shape = config.layers.front();
  Json out = {{"architectures", {std::string(architecture_of(config).class_name)}},
              {"model_type", config.model_type},
              {"vocab_size", config.vocab_size},
              {"hidden_size", config.hidden_size},
              {std::string(architecture_of(config).size_key), shape.intermediate_size},
              {"num_hidden_layers", config.num_layers()},
              {"num_attention_heads", shape.num_attention_heads},
              {"num_key_value_heads", shape.num_key_value_heads},
              {"max_position_embeddings", config.max_position_embeddings},
              {"rms_norm_eps", config.rms_norm_eps},
              {"rope_theta", config.rope.theta},
              {"rope_scaling", describe_rope_scaling(config.rope)},
              {"tie_word_embeddings", config.tie_word_embeddings},
              {"bos_token_id", config.bos_token_id ? Json(*config.bos_token_id) : Json(nullptr)},
              {"eos_token_id", config.eos_token_id ? Json(*config.eos_token_id) : Json(nullptr)}};
  if (config.head_dim * shape.num_attention_heads != config.hidden_size || architecture_of(config).head_dim > 0)
    out["head_dim"] = config.head_dim;
  const Architecture& architecture = architecture_of(config);
  out[std::string(architecture.activation_key)] = name_of(config.activation);
  if (config.sliding_rope) out["rope_local_base_freq"] = config.sliding_rope->theta;
  if (architecture.query_pre_attn_scalar > 0)
    out["query_pre_attn_scalar"] = 1 / (config.attention_scale * config.attention_scale);
  if (architecture.partial_rotary_factor > 0) {
    const auto share = static_cast<double>(config.rotated_channels()) / static_cast<double>(config.head_dim);
    out["partial_rotary_factor"] = share;
  }
  if (architecture.has_multipliers) {
    out["attention_multiplier"] = config.attention_scale;
    out["embedding_multiplier"] = config.embedding_scale;
    out["residual_multiplier"] = config.branch_scale;
    out["logits_scaling"] = 1 / config.logit_scale;
  }
  if (architecture.score_cap > 0) {
    const auto cap = [](double value) { return value > 0 ? Json(value) : Json(nullptr); };
    out["attn_logit_softcapping"] = cap(config.score_cap);
    out["final_logit_softcapping"] = cap(config.logit_cap);
  }
  describe_biases(config, out);
  describe_window(config, out);
  if (architecture.has_delta_layers()) describe_delta_layers(config, out);
  update_unrotated(config, out);
  return out;
}

OrderedJson write_config(const ModelConfig& config, const std::string& dtype_name) {
  Json out = config.source.is_object() && !config.source.empty() ? config.source : describe_dense_config(config);
  if (out.value("model_type", "") == "dynslice") {  // these speak of the source's shapes, not of ours
    for (const char* key : {"dynslice", "base_model_type", "auto_map"}) out.erase(key);
    out["architectures"] = {std::string(architecture_of(config).class_name)};
  }
  out["model_type"] = config.model_type;
  update_changed(config, out);
  update_layer_types(config, out);
  update_unrotated(config, out);
  set_dtype(out, dtype_name);
  if (config.is_wrapped()) {
    OrderedJson whole = config.wrapper;
    whole["text_config"] = out;
    Json dtype = config.wrapper;
    set_dtype(dtype, dtype_name);
    for (const char* key : {"dtype", "torch_dtype"}) {
      if (dtype.contains(key)) whole[key] = dtype.at(key);
    }
    return whole;
  }
  if (!config.wrapper.is_null()) out["architectures"] = {std::string(architecture_of(config).class_name)};
  OrderedJson ordered = out;
  if (config.is_ordinary()) return ordered;
  ordered["architectures"] = {"DynsliceForCausalLM"};
  ordered["model_type"] = "dynslice";
  ordered["base_model_type"] = config.model_type;
  ordered["auto_map"] = {{"AutoConfig", "configuration_dynslice.DynsliceConfig"},
                         {"AutoModelForCausalLM", "modeling_dynslice.DynsliceForCausalLM"}};
  ordered["dynslice"] = describe_slicing(config);
  return ordered;
}

}  // namespace dynslice
