#include "dynslice/model/architecture.h"

#include <algorithm>

#include "dynslice/support/check.h"

namespace dynslice {
namespace {

int64_t input_width(const LayerShape& shape, int64_t) { return shape.input_width; }
int64_t middle_width(const LayerShape& shape, int64_t) { return shape.middle_width; }
int64_t output_width(const LayerShape& shape, int64_t) { return shape.output_width; }
int64_t inner_size(const LayerShape& shape, int64_t) { return shape.intermediate_size; }
int64_t head_width(const LayerShape&, int64_t head_dim) { return head_dim; }
int64_t query_width(const LayerShape& shape, int64_t head_dim) { return shape.num_attention_heads * head_dim; }
int64_t key_width(const LayerShape& shape, int64_t head_dim) { return shape.num_key_value_heads * head_dim; }

bool always(const LayerShape&) { return true; }
bool with_attention(const LayerShape& shape) { return shape.has_attention(); }
bool with_attention_norm(const LayerShape& shape) { return shape.has_attention() && shape.has_norm_weights; }
bool with_head_norms(const LayerShape& shape) { return shape.has_attention() && shape.has_query_key_norm; }
bool with_mlp_norm(const LayerShape& shape) { return shape.has_norm_weights; }
bool with_gate(const LayerShape& shape) { return shape.is_gated; }

constexpr bool ModelConfig::* kQkvBias = &ModelConfig::qkv_bias;
constexpr bool ModelConfig::* kOutputBias = &ModelConfig::o_bias;
constexpr bool ModelConfig::* kMlpBias = &ModelConfig::mlp_bias;

// clang-format off
constexpr LayerPart kParts[] = {
    {Role::kAttentionNorm, "input_layernorm",          "attn_norm",   Half::kAttention, PartSide::kNorm,   input_width,  nullptr,      with_attention_norm, nullptr,     false},
    {Role::kQuery,         "self_attn.q_proj",         "attn_q",      Half::kAttention, PartSide::kReads,  query_width,  input_width,  with_attention,      kQkvBias,    true},
    {Role::kKey,           "self_attn.k_proj",         "attn_k",      Half::kAttention, PartSide::kReads,  key_width,    input_width,  with_attention,      kQkvBias,    true},
    {Role::kValue,         "self_attn.v_proj",         "attn_v",      Half::kAttention, PartSide::kReads,  key_width,    input_width,  with_attention,      kQkvBias,    false},
    {Role::kQueryNorm,     "self_attn.q_norm",         "attn_q_norm", Half::kAttention, PartSide::kInside, head_width,   nullptr,      with_head_norms,     nullptr,     false},
    {Role::kKeyNorm,       "self_attn.k_norm",         "attn_k_norm", Half::kAttention, PartSide::kInside, head_width,   nullptr,      with_head_norms,     nullptr,     false},
    {Role::kOutput,        "self_attn.o_proj",         "attn_output", Half::kAttention, PartSide::kWrites, middle_width, query_width,  with_attention,      kOutputBias, false},
    {Role::kMlpNorm,       "post_attention_layernorm", "ffn_norm",    Half::kMlp,       PartSide::kNorm,   middle_width, nullptr,      with_mlp_norm,       nullptr,     false},
    {Role::kGate,          "mlp.gate_proj",            "ffn_gate",    Half::kMlp,       PartSide::kReads,  inner_size,   middle_width, with_gate,           kMlpBias,    false},
    {Role::kUp,            "mlp.up_proj",              "ffn_up",      Half::kMlp,       PartSide::kReads,  inner_size,   middle_width, always,              kMlpBias,    false},
    {Role::kDown,          "mlp.down_proj",            "ffn_down",    Half::kMlp,       PartSide::kWrites, output_width, inner_size,   always,              kMlpBias,    false},
};

constexpr Architecture kArchitectures[] = {
    {"llama",   "LlamaForCausalLM",   "llama", "deci", 2048,   0,  0,   BiasRule::kFlags,         WindowRule::kNone,      false, true,  false, true,  true},
    {"mistral", "MistralForCausalLM", "llama", "deci", 131072, 8,  0,   BiasRule::kNone,          WindowRule::kAllLayers, false, true,  false, true,  true},
    {"qwen2",   "Qwen2ForCausalLM",   "qwen2", "",     32768,  0,  0,   BiasRule::kQueryKeyValue, WindowRule::kByLayer,   false, false, true,  false, false},
    {"qwen3",   "Qwen3ForCausalLM",   "qwen3", "",     32768,  32, 128, BiasRule::kAttentionFlag, WindowRule::kByLayer,   true,  false, false, false, false},
};
// clang-format on

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

const Architecture& architecture_of(const ModelConfig& config) {
  const Architecture* found = find_architecture(config.model_type);
  DYNSLICE_CHECK(found != nullptr, "architecture_of: unknown model_type ", config.model_type);
  return *found;
}

}  // namespace dynslice
