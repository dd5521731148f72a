#include <algorithm>
#include <cmath>

#include "dynslice/model/architecture.h"
#include "dynslice/model/config_json.h"
#include "dynslice/support/error.h"
#include "model/config_reading.h"

namespace dynslice {
namespace {

// Ten times and more what the largest models have; with them no count of parameters can overflow.
constexpr int64_t kMaxWidth = int64_t{1} << 20;
constexpr int64_t kMaxIntermediate = int64_t{1} << 22;
constexpr int64_t kMaxVocabulary = int64_t{1} << 28;

const Architecture& known_architecture(const std::string& model_type, const std::string& where, const char* key) {
  const Architecture* found = find_architecture(model_type);
  if (found != nullptr) return *found;
  std::string names;
  std::string_view nearest;
  size_t shared = 0;
  for (const Architecture& row : architectures()) {
    names += (names.empty() ? "" : ", ") + std::string(row.model_type);
    const auto [here, there] = std::ranges::mismatch(row.model_type, model_type);
    const auto alike = static_cast<size_t>(here - row.model_type.begin());
    if (alike <= shared) continue;
    nearest = row.model_type;
    shared = alike;
  }
  const bool is_near = shared >= 4;  // letters in common at the beginning: a family
  throw_error(ErrorKind::kBadInput, where, ": key \"", key, "\" is ", Json(model_type).dump(-1, ' ', true),
              "; supported are ", names, " and what dynslice writes",
              is_near ? "; the nearest is " + std::string(nearest) : std::string());
}

void check_activation(const JsonReader& reader, const Architecture& architecture) {
  const std::string expected(name_of(architecture.activation)), key(architecture.activation_key);
  if (reader.string_or(key, expected) != expected)
    reader.fail(key, "\"" + expected + "\", the only activation supported in this architecture");
}

// OPT's other forms: of 350m, of models without biases, and of norms without weights.
void check_layer_norms(const JsonReader& reader) {
  for (const char* key : {"do_layer_norm_before", "enable_bias", "layer_norm_elementwise_affine"}) {
    if (!reader.boolean_or(key, true)) reader.fail(key, "true, the only form of this architecture that is supported");
  }
  if (reader.boolean_or("_remove_final_layer_norm", false))
    reader.fail("_remove_final_layer_norm", "false, as the norm in front of the head is needed");
  if (reader.has("word_embed_proj_dim") && reader.raw().at("word_embed_proj_dim") != reader.raw().at("hidden_size"))
    reader.fail("word_embed_proj_dim", "hidden_size, as projections between embedding and layers are not supported");
}

// Gemma 4's other forms: small models with an embedding for every layer whose last layers share keys and values, and
// mixtures of experts.
void check_gemma4(const JsonReader& reader) {
  const char *embeddings = "hidden_size_per_layer_input", *shared = "num_kv_shared_layers";
  const bool has_embeddings = !reader.has(embeddings) || reader.integer(embeddings, 0, kMaxWidth) > 0;
  if (has_embeddings && !is_null(reader, embeddings))
    reader.fail(embeddings, "0, as embeddings for every layer (Gemma 4 E2B, E4B) are not supported");
  if (reader.integer_or(shared, 0) != 0)
    reader.fail(shared, "0, as layers that share the keys and values of others (Gemma 4 E2B, E4B) are not supported");
  if (reader.boolean_or("enable_moe_block", false))
    reader.fail("enable_moe_block", "false, as mixtures of experts are not supported");
}

// What is computed in other models of the same type, but not here.
void check_absent(const JsonReader& reader, const Architecture& architecture) {
  for (const char* key : {"attn_logit_softcapping", "final_logit_softcapping"}) {
    const bool may_cap = architecture.may_cap_logits && std::string_view(key) == "final_logit_softcapping";
    if (architecture.score_cap == 0 && !may_cap && reader.has(key))
      reader.fail(key, "null, as such caps are not supported in this architecture");
  }
  if (architecture.has_centred_norms) check_layer_norms(reader);
  if (architecture.global_head_dim > 0) check_gemma4(reader);
  const char* bidirectional = "use_bidirectional_attention";
  const bool of_images = reader.has(bidirectional) && reader.raw().at(bidirectional) == "vision";  // not of text
  if (!of_images && reader.boolean_or(bidirectional, false))
    reader.fail(bidirectional, "false, as only causal attention is supported");
}

// A token id, or the first of a list of them; negative ids mean none.
std::optional<int64_t> read_token_id(const JsonReader& reader, const std::string& key) {
  if (!reader.has(key)) return std::nullopt;
  const Json& value = reader.raw().at(key);
  const Json* id = &value;
  if (value.is_array()) {
    if (value.empty()) return std::nullopt;
    id = &value.front();
  }
  if (!id->is_number_integer()) reader.fail(key, "a token id or a list of token ids");
  const auto number = id->get<int64_t>();
  return number < 0 ? std::nullopt : std::optional<int64_t>(number);
}

int64_t read_key_value_heads(const JsonReader& reader, const std::string& key, const Architecture& defaults,
                             int64_t heads) {
  int64_t fallback = heads;
  if (defaults.num_key_value_heads > 0 && !is_null(reader, key)) fallback = defaults.num_key_value_heads;
  const int64_t kv_heads = reader.has(key) ? reader.integer(key, 1, heads) : fallback;
  if (heads % kv_heads != 0) reader.fail(key, "a divisor of num_attention_heads (" + std::to_string(heads) + ")");
  return kv_heads;
}

void check_head_dim(const JsonReader& reader, const std::string& key, int64_t head_dim, int64_t heads) {
  if (head_dim % 2 != 0) reader.fail(key, "such that a head has an even width, as rotary embeddings need");
  if (head_dim > kMaxWidth / heads) reader.fail(key, "such that all heads together are at most 2^20 wide");
}

int64_t read_head_dim(const JsonReader& reader, const Architecture& defaults, int64_t hidden_size, int64_t heads) {
  int64_t head_dim = 0;
  if (reader.has("head_dim")) {
    head_dim = reader.integer("head_dim", 2, kMaxWidth);
  } else if (defaults.head_dim > 0) {
    head_dim = defaults.head_dim;
  } else {
    if (hidden_size % heads != 0) {
      reader.fail("num_attention_heads", "a divisor of hidden_size (" + std::to_string(hidden_size) + ")");
    }
    head_dim = hidden_size / heads;
  }
  check_head_dim(reader, reader.has("head_dim") ? "head_dim" : "num_attention_heads", head_dim, heads);
  return head_dim;
}

void set_norms(const Architecture& architecture, LayerShape& shape) {
  shape.query_key_norm = architecture.query_key_norm;
  shape.has_input_norms = architecture.has_input_norms;
  shape.has_branch_norms = architecture.has_branch_norms;
  shape.has_value_norm = architecture.has_value_norms;
  shape.has_layer_scale = architecture.has_layer_scales;
}

LayerShape read_dense_shape(const JsonReader& reader, const Architecture& defaults, int64_t hidden_size) {
  LayerShape shape;
  shape.input_width = shape.middle_width = shape.output_width = hidden_size;
  shape.intermediate_size = reader.integer(std::string(defaults.size_key), 1, kMaxIntermediate);
  shape.is_gated = defaults.is_gated;
  shape.num_attention_heads = reader.integer("num_attention_heads", 1, kMaxWidth);
  shape.num_key_value_heads = read_key_value_heads(reader, "num_key_value_heads", defaults, shape.num_attention_heads);
  shape.head_dim = read_head_dim(reader, defaults, hidden_size, shape.num_attention_heads);
  set_norms(defaults, shape);
  return shape;
}

void read_biases(const JsonReader& reader, ModelConfig& config) {
  const BiasRule rule = architecture_of(config).biases;
  config.qkv_bias = rule == BiasRule::kQueryKeyValue || rule == BiasRule::kAll;
  config.o_bias = config.mlp_bias = rule == BiasRule::kAll;
  if (rule == BiasRule::kOutputFlag) {
    config.qkv_bias = reader.boolean_or("attention_bias", true);
    config.o_bias = reader.boolean_or("attention_out_bias", false);
    config.mlp_bias = reader.boolean_or("mlp_bias", false);
  }
  if (rule == BiasRule::kReadersFlag) config.qkv_bias = reader.boolean_or("attention_bias", false);
  if (rule != BiasRule::kFlags && rule != BiasRule::kAttentionFlag) return;
  config.qkv_bias = config.o_bias = reader.boolean_or("attention_bias", false);
  if (rule == BiasRule::kFlags) config.mlp_bias = reader.boolean_or("mlp_bias", false);
}

void read_multipliers(const JsonReader& reader, ModelConfig& config) {
  const auto multiplier = [&](const char* key) { return positive(reader, key, reader.number_or(key, 1)); };
  config.attention_scale = multiplier("attention_multiplier");
  config.embedding_scale = multiplier("embedding_multiplier");
  config.branch_scale = multiplier("residual_multiplier");
  config.logit_scale = 1 / multiplier("logits_scaling");
}

// Null means no cap.
void read_caps(const JsonReader& reader, const Architecture& architecture, ModelConfig& config) {
  const auto cap = [&](const char* key, double usual) {
    return is_null(reader, key) ? 0 : positive(reader, key, reader.number_or(key, usual));
  };
  if (architecture.score_cap > 0) config.score_cap = cap("attn_logit_softcapping", architecture.score_cap);
  if (!architecture.may_cap_logits || reader.has("final_logit_softcapping"))
    config.logit_cap = cap("final_logit_softcapping", architecture.logit_cap);
}

// All layers slide. Absent means transformers' default, null means no window.
void read_common_window(const JsonReader& reader, ModelConfig& config) {
  const std::string key = "sliding_window";
  if (reader.has(key)) config.sliding_window = reader.integer(key, 1, kMaxPositions);
  const int64_t usual = architecture_of(config).sliding_window;
  if (!reader.raw().contains(key) && usual > 0) config.sliding_window = usual;
}

// Whether each is of type `other`; those that are not are "full_attention".
std::vector<bool> read_layer_types(const JsonReader& reader, size_t count,
                                   const std::string& other = "sliding_attention") {
  const Json& types = reader.raw().at("layer_types");
  if (!types.is_array() || types.size() != count) {
    reader.fail("layer_types", "a list of one entry for each of the " + std::to_string(count) + " layers");
  }
  std::vector<bool> sliding;
  for (const Json& type : types) {
    if (type != "full_attention" && type != other)
      reader.fail("layer_types", "a list of \"full_attention\" and \"" + other + "\"");
    sliding.push_back(type == other);
  }
  return sliding;
}

// Entries of no_rope_layers are 1 where there is a rotary embedding; there may be more of them than layers.
void read_unrotated(const JsonReader& reader, const Architecture& architecture, ModelConfig& config) {
  const char* key = "no_rope_layers";
  std::vector<bool> unrotated(config.layers.size());
  if (reader.has(key)) {
    const Json& flags = reader.raw().at(key);
    const bool fits = flags.is_array() && flags.size() >= unrotated.size() &&
                      std::ranges::all_of(flags, [](const Json& flag) { return flag == 0 || flag == 1; });
    if (!fits) reader.fail(key, "a list of 0 or 1 for each of the " + std::to_string(unrotated.size()) + " layers");
    for (size_t i = 0; i < unrotated.size(); ++i) unrotated[i] = flags[i] == 0;
  } else {
    int64_t period = architecture.unrotated_period;
    if (reader.has("no_rope_layer_interval")) period = reader.integer("no_rope_layer_interval", 1, kMaxLayers);
    unrotated = every_nth_layer(unrotated.size(), period);
  }
  if (std::ranges::find(unrotated, true) != unrotated.end()) config.layer_is_unrotated = unrotated;
}

// Which layers have a gated delta net in the place of attention, and its sizes; the attention of the others has output
// gates.
void read_delta_layers(const JsonReader& reader, const Architecture& architecture, ModelConfig& config) {
  const auto size = [&](const char* key, int64_t usual) {
    return reader.has(key) ? reader.integer(key, 1, kMaxWidth / 16) : usual;
  };
  DeltaShape delta{size("linear_num_key_heads", 16), size("linear_num_value_heads", 32),
                   size("linear_key_head_dim", 128), size("linear_value_head_dim", 128),
                   size("linear_conv_kernel_dim", 4)};
  if (delta.value_heads % delta.key_heads != 0)
    reader.fail("linear_num_value_heads",
                "a multiple of linear_num_key_heads (" + std::to_string(delta.key_heads) + ")");
  if (delta.key_dim > kMaxWidth / delta.key_heads || delta.value_dim > kMaxWidth / delta.value_heads)
    reader.fail("linear_value_head_dim", "such that all heads together are at most 2^20 wide");
  if (!reader.boolean_or("attn_output_gate", true))
    reader.fail("attn_output_gate", "true, as attention has output gates in this architecture");
  const size_t count = config.layers.size();
  std::vector<bool> is_delta;
  if (reader.has("layer_types")) {
    is_delta = read_layer_types(reader, count, "linear_attention");
  } else {
    const char* key = "full_attention_interval";
    is_delta = every_nth_layer(count, reader.has(key) ? reader.integer(key, 1, kMaxLayers) : architecture.delta_period);
    is_delta.flip();
  }
  for (size_t i = 0; i < count; ++i) {
    config.layers[i].has_output_gate = true;
    if (is_delta[i]) config.layers[i].delta = delta;
  }
}

// All but every so-manieth layer slide, or those that layer_types names.
void read_window_by_pattern(const JsonReader& reader, ModelConfig& config) {
  const Architecture& architecture = architecture_of(config);
  if (architecture.rotates_sliding_only && is_null(reader, "sliding_window")) return;
  std::vector<bool> sliding(config.layers.size());
  if (reader.has("layer_types")) {
    sliding = read_layer_types(reader, config.layers.size());
  } else {
    const char* key = "sliding_window_pattern";
    const int64_t period = reader.has(key) ? reader.integer(key, 1, kMaxLayers) : architecture.window_period;
    sliding = every_nth_layer(sliding.size(), period);
    sliding.flip();
  }
  const auto slides = static_cast<size_t>(std::count(sliding.begin(), sliding.end(), true));
  if (architecture.rotates_sliding_only && slides < sliding.size()) {
    config.layer_is_unrotated = sliding;
    config.layer_is_unrotated.flip();
  }
  if (slides == 0) return;
  if (is_null(reader, "sliding_window")) reader.fail("sliding_window", "a number of tokens, as some layers slide");
  config.sliding_window =
      reader.has("sliding_window") ? reader.integer("sliding_window", 1, kMaxPositions) : architecture.sliding_window;
  if (slides < sliding.size()) config.layer_is_sliding = sliding;
}

// Heads of the layers that see all: global_head_dim and num_global_key_value_heads, or, as transformers 5.17 and later
// write it, per_layer_config, whose entries must say the same of all of them.
void read_global_heads(const JsonReader& reader, const Architecture& architecture, ModelConfig& config) {
  const char *width = "global_head_dim", *groups = "num_global_key_value_heads", *by_layer = "per_layer_config";
  const bool has_keys_for_values = reader.boolean_or("attention_k_eq_v", false);
  const LayerShape usual = config.layers.front();
  const auto read = [&](const JsonReader& from, const char* dim_key, const char* groups_key, int64_t dim) {
    LayerShape shape = usual;
    shape.has_values = !has_keys_for_values;
    shape.head_dim = from.has(dim_key) ? from.integer(dim_key, 2, kMaxWidth) : dim;
    check_head_dim(from, dim_key, shape.head_dim, shape.num_attention_heads);
    if (from.has(groups_key) && (has_keys_for_values || groups_key != groups))
      shape.num_key_value_heads = read_key_value_heads(from, groups_key, architecture, shape.num_attention_heads);
    return shape;
  };
  std::optional<LayerShape> common;
  for (size_t i = 0; i < config.layers.size(); ++i) {
    const bool has_own = reader.has(by_layer) && reader.object(by_layer).has(std::to_string(i));
    if (config.slides(i)) {
      if (has_own) reader.fail(by_layer, "without entries for layers that slide, which have head_dim for all");
      continue;
    }
    LayerShape shape = has_own ? read(reader.object(by_layer).object(std::to_string(i)), "head_dim",
                                      "num_key_value_heads", usual.head_dim)
                               : read(reader, width, groups, architecture.global_head_dim);
    if (!has_own && reader.has(by_layer))
      reader.fail(by_layer, "an object with an entry for every layer that sees all");
    if (common && shape != *common) reader.fail(by_layer, "the same for all layers that see all");
    common = config.layers[i] = shape;
  }
}

// Layers from max_window_layers on slide, or those that layer_types names.
void read_window_by_layer(const JsonReader& reader, ModelConfig& config) {
  std::vector<bool> sliding(config.layers.size(), false);
  if (reader.has("layer_types")) {
    sliding = read_layer_types(reader, config.layers.size());
  } else {
    const int64_t first = reader.integer_or("max_window_layers", 28);
    for (size_t i = 0; i < sliding.size(); ++i) sliding[i] = static_cast<int64_t>(i) >= first;
  }
  if (!reader.boolean_or("use_sliding_window", false) || is_null(reader, "sliding_window")) return;
  const auto slides = static_cast<size_t>(std::count(sliding.begin(), sliding.end(), true));
  if (slides == 0) return;
  config.sliding_window = reader.has("sliding_window") ? reader.integer("sliding_window", 1, kMaxPositions) : 4096;
  if (slides < sliding.size()) config.layer_is_sliding = sliding;
}

ShortcutShape read_shortcut(const JsonReader& layer, const std::string& key, int64_t in, int64_t out) {
  const JsonReader reader = layer.object(key);
  const std::string kind = reader.string("kind");
  ShortcutShape shortcut;
  if (kind == "identity") {
    if (in != out) reader.fail("kind", "another than identity where the widths differ");
    return shortcut;
  }
  if (kind == "matrix") return {ShortcutKind::kMatrix, 0};
  if (kind == "symmetric") {
    if (in > out) reader.fail("kind", "another than symmetric where the stream becomes narrower");
    return {ShortcutKind::kSymmetric, reader.integer("rank", 0, kMaxWidth)};
  }
  if (kind != "low_rank") reader.fail("kind", "one of identity, matrix, symmetric, low_rank");
  return {ShortcutKind::kLowRank, reader.integer("rank", 0, kMaxWidth)};
}

// One entry of dynslice.layers; `dense` is the layer as the rest of the configuration has it.
LayerShape read_sliced_shape(const JsonReader& reader, const ModelConfig& config, const LayerShape& dense) {
  LayerShape shape;
  shape.input_width = reader.integer("input_width", 1, kMaxWidth);
  shape.middle_width = reader.integer("middle_width", 1, kMaxWidth);
  shape.output_width = reader.integer("output_width", 1, kMaxWidth);
  shape.intermediate_size = reader.integer("intermediate_size", 1, kMaxIntermediate);
  shape.head_dim = dense.head_dim;
  shape.has_values = dense.has_values;
  shape.has_output_gate = dense.has_output_gate;
  shape.num_attention_heads = reader.integer("num_attention_heads", 0, kMaxWidth / shape.head_dim);
  if (shape.has_attention()) shape.delta = dense.delta;
  const int64_t least = shape.has_attention() ? 1 : 0;
  shape.num_key_value_heads = reader.integer("num_key_value_heads", least, shape.num_attention_heads);
  shape.attn_shortcut = read_shortcut(reader, "attn_shortcut", shape.input_width, shape.middle_width);
  shape.mlp_shortcut = read_shortcut(reader, "mlp_shortcut", shape.middle_width, shape.output_width);
  shape.has_norm_weights = reader.boolean("norm_weights");
  set_norms(architecture_of(config), shape);
  shape.is_gated = reader.boolean_or("gated", true);
  if (!shape.has_attention()) {
    if (shape.input_width != shape.middle_width || shape.attn_shortcut != ShortcutShape{})
      reader.fail("num_attention_heads", "above 0 where the stream changes between attention and MLP");
  } else if (shape.num_attention_heads % shape.num_key_value_heads != 0) {
    reader.fail("num_key_value_heads", "a divisor of num_attention_heads");
  }
  return shape;
}

void read_frequency_divisors(const JsonReader& reader, ModelConfig& config) {
  const std::string key = "rope_frequency_divisors";
  if (!reader.has(key)) return;
  const Json& values = reader.raw().at(key);
  const auto expected = static_cast<size_t>(config.rotated_channels(config.layers.front()) / 2);
  if (!values.is_array() || values.size() != expected)
    reader.fail(key, "a list of " + std::to_string(expected) + " numbers");
  for (const Json& value : values) {
    if (!value.is_number() || !(value.get<double>() > 0) || !std::isfinite(value.get<double>())) {
      reader.fail(key, "a list of positive numbers");
    }
    config.rope.frequency_divisors.push_back(value.get<double>());
  }
}

// The widths that a layer hands to the next are the ones that the next expects.
void check_stream(const JsonReader& reader, const ModelConfig& config) {
  int64_t width = config.embedding_width;
  for (size_t i = 0; i < config.layers.size(); ++i) {
    const LayerShape& shape = config.layers[i];
    if (shape.input_width != width) {
      throw_error(ErrorKind::kBadInput, reader.where(), ": layers[", i, "].input_width is ", shape.input_width,
                  "; the stream that enters it is ", width, " wide");
    }
    width = shape.output_width;
  }
  if (config.head_width != width) {
    reader.fail("head_width", "the last layer's output_width (" + std::to_string(width) + ")");
  }
  if (config.tie_word_embeddings && config.head_columns() != config.embedding_columns()) {
    reader.fail("head_width", "such that embedding and head have equal columns where word embeddings are tied");
  }
}

void read_sliced_shapes(const JsonReader& reader, ModelConfig& config) {
  reader.integer("format", kDynsliceFormat, kDynsliceFormat);
  config.embedding_width = reader.integer("embedding_width", 1, kMaxWidth);
  config.head_width = reader.integer("head_width", 1, kMaxWidth);
  config.has_final_norm_weight = reader.boolean("final_norm_weight");
  config.has_embedding_rotation = reader.boolean("embedding_rotation");
  config.has_head_rotation = reader.boolean("head_rotation");
  read_frequency_divisors(reader, config);
  if (!reader.has("layers") || !reader.raw().at("layers").is_array()) reader.fail("layers", "a list of layer shapes");
  const Json& layers = reader.raw().at("layers");
  if (layers.size() != config.layers.size()) {
    throw_error(ErrorKind::kBadInput, reader.where(), ": key \"layers\" must have one entry for each of the ",
                config.layers.size(), " layers (num_hidden_layers); found ", layers.size());
  }
  for (size_t i = 0; i < layers.size(); ++i) {
    const JsonReader entry(layers[i], reader.where() + ".layers[" + std::to_string(i) + "]");
    config.layers[i] = read_sliced_shape(entry, config, config.layers[i]);
  }
  // Caches of keys and values tell their length by the first layer.
  if (!config.layers.front().has_attention())
    reader.fail("layers", "such that the first layer has attention (num_attention_heads above 0)");
  check_stream(reader, config);
}

}  // namespace

std::vector<bool> every_nth_layer(size_t count, int64_t period) {
  std::vector<bool> chosen(count);
  for (size_t i = 0; i < count; ++i) chosen[i] = (static_cast<int64_t>(i) + 1) % period == 0;
  return chosen;
}

ModelConfig parse_dense_config(const Json& object, const std::string& model_type, const std::string& where) {
  const JsonReader reader(object, where);
  const Architecture& architecture = known_architecture(model_type, where, "model_type");
  check_activation(reader, architecture);
  check_absent(reader, architecture);
  ModelConfig config;
  config.activation = architecture.activation;
  config.rotary_is_interleaved = architecture.rotary_is_interleaved;
  config.model_type = model_type;
  config.vocab_size = reader.integer("vocab_size", 1, kMaxVocabulary);
  config.hidden_size = reader.integer("hidden_size", 1, kMaxWidth);
  config.embedding_width = config.head_width = config.hidden_size;
  const LayerShape shape = read_dense_shape(reader, architecture, config.hidden_size);
  config.layers.assign(static_cast<size_t>(reader.integer("num_hidden_layers", 1, kMaxLayers)), shape);
  config.max_position_embeddings = architecture.max_position_embeddings;
  if (reader.has("max_position_embeddings")) {
    config.max_position_embeddings = reader.integer("max_position_embeddings", 1, kMaxPositions);
  }
  config.rms_norm_eps = positive(reader, "rms_norm_eps", reader.number_or("rms_norm_eps", architecture.rms_norm_eps));
  config.has_centred_norms = architecture.has_centred_norms;
  if (architecture.has_positions()) {
    config.first_position_row = architecture.first_position_row;
    config.position_rows = config.first_position_row + config.max_position_embeddings;
    config.layer_is_unrotated.assign(config.layers.size(), true);
  } else {
    read_ropes(reader, architecture, config);
  }
  config.attention_scale = architecture.attention_scale;
  if (architecture.query_pre_attn_scalar > 0) {
    const char* key = "query_pre_attn_scalar";
    const auto usual = static_cast<double>(architecture.query_pre_attn_scalar);
    config.attention_scale = 1 / std::sqrt(positive(reader, key, reader.number_or(key, usual)));
  }
  if (architecture.unrotated_period > 0) read_unrotated(reader, architecture, config);
  if (architecture.has_delta_layers()) read_delta_layers(reader, architecture, config);
  if (architecture.scales_embedding) config.embedding_scale = std::sqrt(static_cast<double>(config.hidden_size));
  if (architecture.has_multipliers) read_multipliers(reader, config);
  if (architecture.score_cap > 0 || architecture.may_cap_logits) read_caps(reader, architecture, config);
  config.tie_word_embeddings = reader.boolean_or("tie_word_embeddings", architecture.tie_word_embeddings);
  read_biases(reader, config);
  if (architecture.window == WindowRule::kAllLayers) read_common_window(reader, config);
  if (architecture.window == WindowRule::kByLayer) read_window_by_layer(reader, config);
  if (architecture.window == WindowRule::kByPattern) read_window_by_pattern(reader, config);
  if (architecture.global_head_dim > 0) read_global_heads(reader, architecture, config);
  config.bos_token_id = read_token_id(reader, "bos_token_id");
  config.eos_token_id = read_token_id(reader, "eos_token_id");
  const char* packing = "quantization_config";
  if (reader.has(packing)) config.packing = read_weight_packing(reader.object(packing));
  config.source = object;
  config.source.erase(packing);
  return config;
}

namespace {

// A language model beside other parts, which are left as they are.
ModelConfig parse_wrapped_config(const JsonReader& reader) {
  constexpr const char* kText = "text_config";
  const JsonReader text = reader.object(kText);
  constexpr const char* kPacking = "quantization_config";
  Json object = text.raw();
  for (const char* key : {"bos_token_id", "eos_token_id"}) {
    if (!text.has(key) && reader.has(key)) object[key] = reader.raw().at(key);
  }
  ModelConfig config = parse_dense_config(object, text.string("model_type"), text.where());
  if (reader.has(kPacking)) config.packing = read_weight_packing(reader.object(kPacking));
  config.source = text.raw();
  config.wrapper = reader.raw();
  for (Json* part : {&config.source, &config.wrapper}) part->erase(kPacking);
  config.wrapper.erase(kText);
  return config;
}

}  // namespace

ModelConfig parse_config(const Json& object, const std::string& where) {
  const JsonReader reader(object, where);
  const std::string model_type = reader.string("model_type");
  const bool may_be_part = find_architecture(model_type) == nullptr && model_type != "dynslice";
  if (may_be_part && object.contains("text_config") && object.at("text_config").is_object())
    return parse_wrapped_config(reader);
  if (model_type != "dynslice") return parse_dense_config(object, model_type, where);
  const std::string base = reader.string("base_model_type");
  known_architecture(base, where, "base_model_type");
  ModelConfig config = parse_dense_config(object, base, where);
  read_sliced_shapes(reader.object("dynslice"), config);
  return config;
}

ModelConfig read_config(const std::filesystem::path& config_json) {
  constexpr uint64_t kMaxBytes = uint64_t{64} << 20;
  return parse_config(parse_json(read_file(config_json, kMaxBytes), config_json.string()), config_json.string());
}

}  // namespace dynslice
