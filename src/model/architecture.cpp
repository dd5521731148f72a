#include "dynslice/model/architecture.h"

#include <algorithm>

#include "dynslice/support/check.h"

namespace dynslice {
namespace {

int64_t input_width(const LayerShape& shape) { return shape.input_width; }
int64_t middle_width(const LayerShape& shape) { return shape.middle_width; }
int64_t output_width(const LayerShape& shape) { return shape.output_width; }
int64_t inner_size(const LayerShape& shape) { return shape.intermediate_size; }
int64_t query_width(const LayerShape& shape) { return shape.num_attention_heads * shape.head_dim; }
int64_t query_rows(const LayerShape& shape) { return (shape.has_output_gate ? 2 : 1) * query_width(shape); }
int64_t delta_channels(const LayerShape& shape) { return shape.delta.channels(); }
int64_t delta_values(const LayerShape& shape) { return shape.delta.values(); }
int64_t delta_heads(const LayerShape& shape) { return shape.delta.value_heads; }
int64_t delta_head_width(const LayerShape& shape) { return shape.delta.value_dim; }
int64_t delta_taps(const LayerShape& shape) { return shape.delta.taps; }
int64_t key_width(const LayerShape& shape) { return shape.num_key_value_heads * shape.head_dim; }
// Of the norms of queries and keys.
int64_t query_norm_width(const LayerShape& shape) {
  return shape.query_key_norm == QueryKeyNorm::kWhole ? query_width(shape) : shape.head_dim;
}
int64_t key_norm_width(const LayerShape& shape) {
  return shape.query_key_norm == QueryKeyNorm::kWhole ? key_width(shape) : shape.head_dim;
}

bool always(const LayerShape&) { return true; }
bool with_attention(const LayerShape& shape) { return shape.has_attention() && !shape.is_delta(); }
bool with_delta(const LayerShape& shape) { return shape.has_attention() && shape.is_delta(); }
bool with_mlp_norm(const LayerShape& shape) { return shape.has_input_norms && shape.has_norm_weights; }
bool with_attention_norm(const LayerShape& shape) { return shape.has_attention() && with_mlp_norm(shape); }
bool with_head_norms(const LayerShape& shape) {
  return with_attention(shape) && shape.query_key_norm != QueryKeyNorm::kNone;
}
bool with_attention_branch_norm(const LayerShape& shape) { return shape.has_attention() && shape.has_branch_norms; }
bool with_mlp_branch_norm(const LayerShape& shape) { return shape.has_branch_norms; }
bool with_gate(const LayerShape& shape) { return shape.is_gated; }
bool with_values(const LayerShape& shape) { return with_attention(shape) && shape.has_values; }
bool with_layer_scale(const LayerShape& shape) { return shape.has_layer_scale; }
int64_t one(const LayerShape&) { return 1; }

constexpr bool ModelConfig::* kQkvBias = &ModelConfig::qkv_bias;
constexpr bool ModelConfig::* kOutputBias = &ModelConfig::o_bias;
constexpr bool ModelConfig::* kMlpBias = &ModelConfig::mlp_bias;
constexpr bool ModelConfig::* kNormBias = &ModelConfig::has_centred_norms;

// clang-format off
constexpr LayerPart kParts[] = {
    {Role::kAttentionNorm,       "input_layernorm",          "attn_norm",           Half::kAttention, PartSide::kNorm,   input_width,  nullptr,      with_attention_norm,        kNormBias,   false},
    {Role::kQuery,               "self_attn.q_proj",         "attn_q",              Half::kAttention, PartSide::kReads,  query_rows,   input_width,  with_attention,             kQkvBias,    true},
    {Role::kKey,                 "self_attn.k_proj",         "attn_k",              Half::kAttention, PartSide::kReads,  key_width,    input_width,  with_attention,             kQkvBias,    true},
    {Role::kValue,               "self_attn.v_proj",         "attn_v",              Half::kAttention, PartSide::kReads,  key_width,    input_width,  with_values,                kQkvBias,    false},
    {Role::kQueryNorm,           "self_attn.q_norm",         "attn_q_norm",         Half::kAttention, PartSide::kInside, query_norm_width, nullptr,      with_head_norms,            nullptr,     false},
    {Role::kKeyNorm,             "self_attn.k_norm",         "attn_k_norm",         Half::kAttention, PartSide::kInside, key_norm_width,   nullptr,      with_head_norms,            nullptr,     false},
    {Role::kOutput,              "self_attn.o_proj",         "attn_output",         Half::kAttention, PartSide::kWrites, middle_width, query_width,  with_attention,             kOutputBias, false},
    {Role::kDeltaInput,          "linear_attn.in_proj_qkv",  "attn_qkv",            Half::kAttention, PartSide::kReads,  delta_channels, input_width, with_delta,                 nullptr,     false},
    {Role::kDeltaGate,           "linear_attn.in_proj_z",    "attn_gate",           Half::kAttention, PartSide::kReads,  delta_values, input_width,  with_delta,                 nullptr,     false},
    {Role::kDeltaBeta,           "linear_attn.in_proj_b",    "ssm_beta",            Half::kAttention, PartSide::kReads,  delta_heads,  input_width,  with_delta,                 nullptr,     false},
    {Role::kDeltaDecay,          "linear_attn.in_proj_a",    "ssm_alpha",           Half::kAttention, PartSide::kReads,  delta_heads,  input_width,  with_delta,                 nullptr,     false},
    {Role::kDeltaConvolution,    "linear_attn.conv1d",       "ssm_conv1d",          Half::kAttention, PartSide::kInside, delta_channels, nullptr,    with_delta,                 nullptr,     false, delta_taps},
    {Role::kDeltaStep,           "linear_attn.dt_bias",      "ssm_dt",              Half::kAttention, PartSide::kInside, delta_heads,  nullptr,      with_delta,                 nullptr,     false},
    {Role::kDeltaRate,           "linear_attn.A_log",        "ssm_a",               Half::kAttention, PartSide::kInside, delta_heads,  nullptr,      with_delta,                 nullptr,     false},
    {Role::kDeltaNorm,           "linear_attn.norm",         "ssm_norm",            Half::kAttention, PartSide::kInside, delta_head_width, nullptr,  with_delta,                 nullptr,     false},
    {Role::kDeltaOutput,         "linear_attn.out_proj",     "ssm_out",             Half::kAttention, PartSide::kWrites, middle_width, delta_values, with_delta,                 nullptr,     false},
    {Role::kAttentionBranchNorm, "post_self_attn_layernorm", "post_attention_norm", Half::kAttention, PartSide::kBehind, middle_width, nullptr,      with_attention_branch_norm, nullptr,     false},
    {Role::kMlpNorm,             "post_attention_layernorm", "ffn_norm",            Half::kMlp,       PartSide::kNorm,   middle_width, nullptr,      with_mlp_norm,              kNormBias,   false},
    {Role::kGate,                "mlp.gate_proj",            "ffn_gate",            Half::kMlp,       PartSide::kReads,  inner_size,   middle_width, with_gate,                  kMlpBias,    false},
    {Role::kUp,                  "mlp.up_proj",              "ffn_up",              Half::kMlp,       PartSide::kReads,  inner_size,   middle_width, always,                     kMlpBias,    false},
    {Role::kDown,                "mlp.down_proj",            "ffn_down",            Half::kMlp,       PartSide::kWrites, output_width, inner_size,   always,                     kMlpBias,    false},
    {Role::kMlpBranchNorm,       "post_mlp_layernorm",       "post_ffw_norm",       Half::kMlp,       PartSide::kBehind, output_width, nullptr,      with_mlp_branch_norm,       nullptr,     false},
    {Role::kLayerScale,          "layer_scalar",             "layer_output_scale",  Half::kMlp,       PartSide::kBehind, one,          nullptr,      with_layer_scale,           nullptr,     false},
};
// clang-format on

constexpr Renaming kGemmaNames[] = {{"post_self_attn_layernorm", "post_attention_layernorm"},
                                    {"post_attention_layernorm", "pre_feedforward_layernorm"},
                                    {"post_mlp_layernorm", "post_feedforward_layernorm"}};

constexpr Renaming kGemma4Names[] = {{"post_self_attn_layernorm", "post_attention_layernorm"},
                                     {"post_attention_layernorm", "pre_feedforward_layernorm"},
                                     {"post_mlp_layernorm", "post_feedforward_layernorm"},
                                     {"layer_scalar", "layer_scalar", true}};

// Norms behind attention and MLP alone.
constexpr Renaming kBehindNames[] = {{"post_self_attn_layernorm", "post_attention_layernorm"},
                                     {"post_mlp_layernorm", "post_feedforward_layernorm"}};

constexpr Renaming kHunyuanNames[] = {{"self_attn.q_norm", "self_attn.query_layernorm"},
                                      {"self_attn.k_norm", "self_attn.key_layernorm"}};

constexpr Renaming kOptNames[] = {{"input_layernorm", "self_attn_layer_norm"},
                                  {"self_attn.o_proj", "self_attn.out_proj"},
                                  {"post_attention_layernorm", "final_layer_norm"},
                                  {"mlp.up_proj", "fc1"},
                                  {"mlp.down_proj", "fc2"}};

constexpr Renaming kDeltaNames[] = {{"linear_attn.dt_bias", "linear_attn.dt_bias", true},
                                    {"linear_attn.A_log", "linear_attn.A_log", true}};

constexpr Renaming kDeltaGgufNames[] = {{"post_attention_layernorm", "post_attention_norm"},
                                        {"linear_attn.dt_bias", "ssm_dt.bias", true},
                                        {"linear_attn.A_log", "ssm_a", true}};

constexpr Role kReaders[] = {Role::kQuery, Role::kKey, Role::kValue}, kGateAndUp[] = {Role::kGate, Role::kUp};
constexpr Fusion kPhiFusions[] = {{"self_attn.qkv_proj", "attn_qkv", kReaders},
                                  {"mlp.gate_up_proj", "ffn_up", kGateAndUp}};
constexpr Fusion kGlmFusions[] = {{"mlp.gate_up_proj", "ffn_up", kGateAndUp}};

constexpr Renaming kSeedGgufNames[] = {{"post_attention_layernorm", "post_attention_norm"}};

constexpr Architecture kArchitectures[] = {
    {.model_type = "llama",
     .class_name = "LlamaForCausalLM",
     .gguf = "llama",
     .gguf_of_unequal_layers = "deci",
     .max_position_embeddings = 2048,
     .biases = BiasRule::kFlags,
     .pairs_rotary_rows = true,
     .has_rope_divisors = true,
     .has_output_bias = true,
     .has_mlp_bias = true},
    {.model_type = "mistral",
     .class_name = "MistralForCausalLM",
     .gguf = "llama",
     .gguf_of_unequal_layers = "deci",
     .max_position_embeddings = 131072,
     .num_key_value_heads = 8,
     .window = WindowRule::kAllLayers,
     .pairs_rotary_rows = true,
     .has_rope_divisors = true,
     .has_output_bias = true,
     .has_mlp_bias = true},
    {.model_type = "qwen2",
     .class_name = "Qwen2ForCausalLM",
     .gguf = "qwen2",
     .max_position_embeddings = 32768,
     .biases = BiasRule::kQueryKeyValue,
     .window = WindowRule::kByLayer,
     .heads_fill_stream = true},
    {.model_type = "qwen3",
     .class_name = "Qwen3ForCausalLM",
     .gguf = "qwen3",
     .max_position_embeddings = 32768,
     .num_key_value_heads = 32,
     .head_dim = 128,
     .biases = BiasRule::kAttentionFlag,
     .window = WindowRule::kByLayer,
     .query_key_norm = QueryKeyNorm::kHead},
    {.model_type = "gemma3_text",
     .class_name = "Gemma3ForCausalLM",
     .gguf = "gemma3",
     .max_position_embeddings = 131072,
     .num_key_value_heads = 4,
     .head_dim = 256,
     .rope_theta = 1e6,
     .query_pre_attn_scalar = 256,
     .tie_word_embeddings = true,
     .biases = BiasRule::kAttentionFlag,
     .window = WindowRule::kByPattern,
     .window_period = 6,
     .sliding_rope_theta = 10000,
     .query_key_norm = QueryKeyNorm::kHead,
     .has_branch_norms = true,
     .activation = Activation::kGeluTanh,
     .activation_key = "hidden_activation",
     .scales_embedding = true,
     .norm_offset = 1,
     .names = kGemmaNames,
     .gguf_layers_of_27b = 62},
    {.model_type = "smollm3",
     .class_name = "SmolLM3ForCausalLM",
     .gguf = "smollm3",
     .max_position_embeddings = 32768,
     .num_key_value_heads = 4,
     .rope_theta = 2e6,
     .tie_word_embeddings = true,
     .biases = BiasRule::kFlags,
     .window = WindowRule::kByLayer,
     .unrotated_period = 4,
     .pairs_rotary_rows = true},
    {.model_type = "seed_oss",
     .class_name = "SeedOssForCausalLM",
     .gguf = "seed_oss",
     .max_position_embeddings = 524288,
     .num_key_value_heads = 8,
     .head_dim = 128,
     .biases = BiasRule::kOutputFlag,
     .gguf_names = kSeedGgufNames},
    {.model_type = "gemma2",
     .class_name = "Gemma2ForCausalLM",
     .gguf = "gemma2",
     .max_position_embeddings = 8192,
     .num_key_value_heads = 4,
     .head_dim = 256,
     .query_pre_attn_scalar = 256,
     .tie_word_embeddings = true,
     .biases = BiasRule::kAttentionFlag,
     .window = WindowRule::kByPattern,
     .window_period = 2,
     .has_branch_norms = true,
     .score_cap = 50,
     .logit_cap = 30,
     .activation = Activation::kGeluTanh,
     .activation_key = "hidden_activation",
     .scales_embedding = true,
     .norm_offset = 1,
     .names = kGemmaNames,
     .gguf_head = GgufHead::kTied,
     .gguf_layers_of_27b = 46},
    {.model_type = "ministral3",
     .class_name = "Ministral3ForCausalLM",
     .gguf = "mistral3",
     .max_position_embeddings = 262144,
     .num_key_value_heads = 8,
     .head_dim = 128,
     .rms_norm_eps = 1e-5,
     .window = WindowRule::kAllLayers,
     .sliding_window = 0,
     .has_query_growth = true,
     .pairs_rotary_rows = true,
     .has_rope_divisors = true},
    {.model_type = "olmo2",
     .class_name = "Olmo2ForCausalLM",
     .gguf = "olmo2",
     .max_position_embeddings = 2048,
     .rms_norm_eps = 1e-5,
     .biases = BiasRule::kAttentionFlag,
     .query_key_norm = QueryKeyNorm::kWhole,
     .has_input_norms = false,
     .has_branch_norms = true,
     .names = kBehindNames,
     .heads_fill_stream = true,
     .gguf_head = GgufHead::kOwn,
     .gguf_has_one_theta = true},
    {.model_type = "olmo3",
     .class_name = "Olmo3ForCausalLM",
     .gguf = "olmo2",
     .max_position_embeddings = 2048,
     .rms_norm_eps = 1e-5,
     .rope_theta = 500000,
     .biases = BiasRule::kAttentionFlag,
     .window = WindowRule::kByPattern,
     .window_period = 4,
     .sliding_rope_theta = 500000,
     .query_key_norm = QueryKeyNorm::kWhole,
     .has_input_norms = false,
     .has_branch_norms = true,
     .names = kBehindNames,
     .heads_fill_stream = true,
     .gguf_head = GgufHead::kOwn,
     .gguf_has_one_theta = true},
    {.model_type = "granite",
     .class_name = "GraniteForCausalLM",
     .gguf = "granite",
     .max_position_embeddings = 2048,
     .biases = BiasRule::kFlags,
     .has_multipliers = true,
     .pairs_rotary_rows = true,
     .heads_fill_stream = true,
     .has_rope_divisors = true,
     .has_output_bias = true,
     .has_mlp_bias = true},
    {.model_type = "exaone4",
     .class_name = "Exaone4ForCausalLM",
     .gguf = "exaone4",
     .max_position_embeddings = 2048,
     .num_key_value_heads = 32,
     .rms_norm_eps = 1e-5,
     .window = WindowRule::kByPattern,
     .window_period = 4,
     .rotates_sliding_only = true,
     .query_key_norm = QueryKeyNorm::kHead,
     .has_input_norms = false,
     .has_branch_norms = true,
     .names = kBehindNames,
     .heads_fill_stream = true,
     .has_rope_divisors = true,
     .gguf_layers_that_slide = 64},
    {.model_type = "hunyuan_v1_dense",
     .class_name = "HunYuanDenseV1ForCausalLM",
     .gguf = "hunyuan-dense",
     .max_position_embeddings = 2048,
     .rms_norm_eps = 1e-5,
     .biases = BiasRule::kAttentionFlag,
     .has_dynamic_alpha = true,
     .query_key_norm = QueryKeyNorm::kRotatedHead,
     .names = kHunyuanNames},
    {.model_type = "phi3",
     .class_name = "Phi3ForCausalLM",
     .gguf = "phi3",
     .max_position_embeddings = 4096,
     .rms_norm_eps = 1e-5,
     .window = WindowRule::kAllLayers,
     .sliding_window = 0,
     .partial_rotary_factor = 1,
     .has_longrope = true,
     .fusions = kPhiFusions,
     .heads_fill_stream = true},
    {.model_type = "glm4",
     .class_name = "Glm4ForCausalLM",
     .gguf = "glm4",
     .max_position_embeddings = 131072,
     .num_key_value_heads = 2,
     .head_dim = 128,
     .rms_norm_eps = 1.5625e-7,
     .biases = BiasRule::kReadersFlag,
     .partial_rotary_factor = 0.5,
     .rotary_is_interleaved = true,
     .has_branch_norms = true,
     .fusions = kGlmFusions},
    {.model_type = "opt",
     .class_name = "OPTForCausalLM",
     .gguf = "",
     .max_position_embeddings = 2048,
     .rms_norm_eps = 1e-5,
     .tie_word_embeddings = true,
     .biases = BiasRule::kAll,
     .has_centred_norms = true,
     .first_position_row = 2,
     .is_gated = false,
     .activation = Activation::kRelu,
     .activation_key = "activation_function",
     .size_key = "ffn_dim",
     .stem = "model.decoder.",
     .final_norm = "final_layer_norm",
     .names = kOptNames},
    {.model_type = "qwen3_5_text",
     .class_name = "Qwen3_5ForCausalLM",
     .gguf = "qwen35",
     .max_position_embeddings = 32768,
     .num_key_value_heads = 4,
     .head_dim = 256,
     .biases = BiasRule::kAttentionFlag,
     .partial_rotary_factor = 0.25,
     .query_key_norm = QueryKeyNorm::kHead,
     .delta_period = 4,
     .norm_offset = 1,
     .names = kDeltaNames,
     .gguf_names = kDeltaGgufNames},
    {.model_type = "gemma4_text",
     .class_name = "Gemma4ForCausalLM",
     .gguf = "gemma4",
     .gguf_of_unequal_layers = "gemma4",
     .max_position_embeddings = 131072,
     .num_key_value_heads = 4,
     .head_dim = 256,
     .global_head_dim = 512,
     .rope_theta = 1e6,
     .attention_scale = 1,
     .tie_word_embeddings = true,
     .biases = BiasRule::kAttentionFlag,
     .window = WindowRule::kByPattern,
     .sliding_window = 512,
     .window_period = 6,
     .sliding_rope_theta = 10000,
     .turning_share = 0.25,
     .query_key_norm = QueryKeyNorm::kHead,
     .has_value_norms = true,
     .has_layer_scales = true,
     .has_branch_norms = true,
     .may_cap_logits = true,
     .activation = Activation::kGeluTanh,
     .activation_key = "hidden_activation",
     .scales_embedding = true,
     .names = kGemma4Names,
     .has_rope_divisors = true},
};

}  // namespace

std::span<const LayerPart> layer_parts() { return kParts; }

const LayerPart* find_part(std::string_view tensor) {
  const size_t dot = tensor.rfind('.');
  if (dot == std::string_view::npos) return nullptr;
  const std::string_view module = tensor.substr(0, dot), kind = tensor.substr(dot);
  if (kind != ".weight" && kind != ".bias") return nullptr;
  const auto* found = std::ranges::find(kParts, module, &LayerPart::module);
  return found == std::end(kParts) ? nullptr : found;
}

bool is_norm(Role role) {
  switch (role) {
    case Role::kAttentionNorm:
    case Role::kQueryNorm:
    case Role::kKeyNorm:
    case Role::kAttentionBranchNorm:
    case Role::kMlpNorm:
    case Role::kMlpBranchNorm:
      return true;
    default:
      return false;
  }
}

const LayerPart& part_of(Role role) { return *std::ranges::find(kParts, role, &LayerPart::role); }

std::vector<std::string> linear_names() {
  std::vector<std::string> names;
  for (const LayerPart& part : kParts) {
    if (part.is_linear()) names.emplace_back(part.module.substr(part.module.rfind('.') + 1));
  }
  return names;
}

std::span<const Architecture> architectures() { return kArchitectures; }

const Architecture* find_architecture(std::string_view model_type) {
  const auto* found = std::ranges::find(kArchitectures, model_type, &Architecture::model_type);
  return found == std::end(kArchitectures) ? nullptr : found;
}

std::string_view gguf_module(const Architecture& architecture, const LayerPart& part) {
  const auto renamed = std::ranges::find(architecture.gguf_names, part.module, &Renaming::ours);
  return renamed == architecture.gguf_names.end() ? part.gguf : renamed->theirs;
}

const LayerPart* find_gguf_part(const Architecture& architecture, std::string_view module) {
  const auto* found = std::ranges::find_if(kParts, [&](const LayerPart& part) {
    const bool may_be = part.side != PartSide::kBehind || architecture.has_branch_norms;
    return may_be && gguf_module(architecture, part) == module;
  });
  return found == std::end(kParts) ? nullptr : found;
}

const Fusion* fusion_of(const Architecture& architecture, Role role, std::string_view Fusion::* format) {
  const auto found = std::ranges::find_if(architecture.fusions, [&](const Fusion& fusion) {
    return !(fusion.*format).empty() && std::ranges::find(fusion.roles, role) != fusion.roles.end();
  });
  return found == architecture.fusions.end() ? nullptr : &*found;
}

std::string_view name_of(Activation activation) {
  switch (activation) {
    case Activation::kSilu:
      return "silu";
    case Activation::kRelu:
      return "relu";
    case Activation::kGeluTanh:
      return "gelu_pytorch_tanh";
  }
  return "";
}

const Architecture& architecture_of(const ModelConfig& config) {
  const Architecture* found = find_architecture(config.model_type);
  DYNSLICE_CHECK(found != nullptr, "architecture_of: unknown model_type ", config.model_type);
  return *found;
}

}  // namespace dynslice
