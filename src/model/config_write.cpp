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

// Both ropes where a share of the pairs turns in layers that see all.
void describe_turning_share(const ModelConfig& config, Json& out) {
  for (const char* key : {"rope_theta", "rope_scaling", "rope_local_base_freq"}) out.erase(key);
  const RopeConfig &global = config.rope, &sliding = config.sliding_rope.value();
  out["rope_parameters"] = {
      {"full_attention",
       {{"rope_type", "proportional"}, {"partial_rotary_factor", global.turning_share}, {"rope_theta", global.theta}}},
      {"sliding_attention", {{"rope_type", "default"}, {"rope_theta", sliding.theta}}}};
}

Json describe_layer_types(const ModelConfig& config) {
  Json types = Json::array();
  for (size_t i = 0; i < config.layers.size(); ++i) {
    types.push_back(config.slides(i) ? "sliding_attention" : "full_attention");
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

// The layer whose sizes config.json's common keys are: the first, or where layers that see all have their own heads,
// the first that slides.
const LayerShape& common_layer(const ModelConfig& config) {
  const bool has_global_heads = architecture_of(config).global_head_dim > 0;
  const LayerShape* sliding = has_global_heads ? config.first_that_slides(true) : nullptr;
  return sliding != nullptr ? *sliding : config.layers.front();
}

// Whether layers are equal in that, those that see all but have their own heads left out.
bool all_layers(const ModelConfig& config, int64_t LayerShape::* member) {
  const bool has_global_heads = architecture_of(config).global_head_dim > 0;
  const LayerShape& common = common_layer(config);
  const bool all_see_all = has_global_heads && config.first_that_slides(true) == nullptr;
  for (size_t i = 0; i < config.layers.size(); ++i) {
    const bool has_own =
        has_global_heads && !all_see_all && !config.slides(i) && member == &LayerShape::num_key_value_heads;
    if (!has_own && config.layers[i].*member != common.*member) return false;
  }
  return true;
}

// Heads of the layers that see all, as Gemma 4 was published; per_layer_config counts layers that may have gone.
void describe_global_heads(const ModelConfig& config, Json& out) {
  if (architecture_of(config).global_head_dim == 0) return;
  out.erase("per_layer_config");
  const LayerShape* global = config.first_that_slides(false);
  if (global == nullptr) return;
  out["global_head_dim"] = global->head_dim;
  out["attention_k_eq_v"] = !global->has_values;
  out["num_global_key_value_heads"] = global->has_values ? Json(nullptr) : Json(global->num_key_value_heads);
}

// Overwrites the numbers that differ from `before`, what `out` says, and leaves every other key as it came.
void update_changed(const ModelConfig& config, const ModelConfig& before, Json& out) {
  const auto set = [&out](const char* key, const auto& now, const auto& then) {
    if (now != then) out[key] = now;
  };
  set("vocab_size", config.vocab_size, before.vocab_size);
  set("hidden_size", config.hidden_size, before.hidden_size);
  const LayerShape &common = common_layer(config), &common_before = common_layer(before);
  set("head_dim", common.head_dim, common_before.head_dim);
  set("rms_norm_eps", config.rms_norm_eps, before.rms_norm_eps);
  if (config.hidden_size != before.hidden_size) out["head_dim"] = common.head_dim;  // no longer what the sizes imply
  set("num_hidden_layers", config.num_layers(), before.num_layers());
  set("max_position_embeddings", config.max_position_embeddings, before.max_position_embeddings);
  set("tie_word_embeddings", config.tie_word_embeddings, before.tie_word_embeddings);
  const auto set_shape = [&](const char* key, int64_t LayerShape::* member) {
    if (!all_layers(config, member)) return;
    const int64_t now = common.*member;
    if (now == common_before.*member) return;
    if (member == &LayerShape::num_attention_heads) {  // what was implied by their number must not change with it
      out["head_dim"] = common.head_dim;
      out["num_key_value_heads"] = common_before.num_key_value_heads;
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
  const LayerShape& shape = common_layer(config);
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
  if (shape.head_dim * shape.num_attention_heads != config.hidden_size || architecture_of(config).head_dim > 0)
    out["head_dim"] = shape.head_dim;
  const Architecture& architecture = architecture_of(config);
  out[std::string(architecture.activation_key)] = name_of(config.activation);
  if (config.sliding_rope) out["rope_local_base_freq"] = config.sliding_rope->theta;
  if (architecture.query_pre_attn_scalar > 0)
    out["query_pre_attn_scalar"] = 1 / (config.attention_scale * config.attention_scale);
  if (architecture.partial_rotary_factor > 0) {
    const auto share = static_cast<double>(config.rotated_channels(shape)) / static_cast<double>(shape.head_dim);
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
  if (architecture.may_cap_logits)
    out["final_logit_softcapping"] = config.logit_cap > 0 ? Json(config.logit_cap) : Json(nullptr);
  if (architecture.turning_share > 0) describe_turning_share(config, out);
  if (architecture.global_head_dim > 0) out["hidden_size_per_layer_input"] = 0;  // silence would mean that there are
  describe_global_heads(config, out);
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
  const ModelConfig before = parse_dense_config(out, config.model_type, "the source configuration");
  update_changed(config, before, out);
  update_layer_types(config, out);
  update_unrotated(config, out);
  describe_global_heads(config.is_ordinary() ? config : before, out);
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
