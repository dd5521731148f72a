// The architectures as data: what a decoder layer consists of, under which names, and what sets one architecture apart
// from another. Whoever goes through the parts of a layer, or asks how a model differs from Llama, reads it here.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dynslice/model/config.h"

namespace dynslice {

// ---- Parts of a layer ----

enum class Role {
  kAttentionNorm,
  kQuery,
  kKey,
  kValue,
  kQueryNorm,
  kKeyNorm,
  kOutput,
  kMlpNorm,
  kGate,
  kUp,
  kDown,
};

enum class Half { kAttention, kMlp };

// Of a half layer: the norm in front of it, what reads the stream, what works inside, what writes to the stream.
enum class PartSide { kNorm, kReads, kInside, kWrites };

struct LayerPart {
  Role role;
  std::string_view module;  // "self_attn.q_proj": its tensors are module + ".weight" and, with a bias, ".bias"
  std::string_view gguf;    // "attn_q"
  Half half;
  PartSide side;
  int64_t (*rows)(const LayerShape& shape, int64_t head_dim);
  int64_t (*columns)(const LayerShape& shape, int64_t head_dim);  // null: a vector of so many rows
  bool (*is_in)(const LayerShape& shape);                         // whether a layer of this shape has it
  bool ModelConfig::* bias;                                       // whether it has a bias; null: never
  bool is_rotary;                                                 // whether its rows are rotated in pairs

  [[nodiscard]] bool is_linear() const { return columns != nullptr; }
  [[nodiscard]] bool has_bias(const ModelConfig& config) const { return bias != nullptr && config.*bias; }
};

// All that a layer can have, in the order of its tensors in a checkpoint.
[[nodiscard]] std::span<const LayerPart> layer_parts();

// The part that the tensor of that name in a layer belongs to ("mlp.up_proj.weight"); null for shortcuts and unknown
// names.
[[nodiscard]] const LayerPart* find_part(std::string_view tensor);

// The last words of the modules of all linears: "q_proj", "k_proj", ...
[[nodiscard]] std::vector<std::string> linear_names();

// ---- Architectures ----

enum class BiasRule {
  kNone,
  kQueryKeyValue,  // these three, always
  kFlags,          // attention_bias: query, key, value and output; mlp_bias: the MLP
  kAttentionFlag,  // attention_bias alone
};

enum class WindowRule {
  kNone,
  kAllLayers,  // sliding_window is that of every layer
  kByLayer,    // with use_sliding_window, of those that layer_types or max_window_layers names
};

struct Architecture {
  std::string_view model_type;  // config.json's
  std::string_view class_name;  // transformers': "LlamaForCausalLM"
  std::string_view gguf;        // general.architecture of its GGUF files
  // The architecture that llama.cpp knows with sizes of its own for every layer; empty: none.
  std::string_view gguf_of_unequal_layers;
  // What transformers assumes where config.json is silent; 0: what the other sizes imply.
  int64_t max_position_embeddings;
  int64_t num_key_value_heads;
  int64_t head_dim;
  BiasRule biases;
  WindowRule window;
  bool has_query_key_norm;  // RMS norm of every query and key head, between projection and rotation
  // Of llama.cpp's own: whether the two rows of a rotary pair lie side by side in the file, whether the heads together
  // must be as wide as the stream, whether frequencies may be divided pair by pair (rope_freqs.weight), and whether
  // attention's output may have a bias.
  bool pairs_rotary_rows;
  bool heads_fill_stream;
  bool has_rope_divisors;
  bool has_output_bias;
};

[[nodiscard]] std::span<const Architecture> architectures();

// Null for a model type that is not supported.
[[nodiscard]] const Architecture* find_architecture(std::string_view model_type);

// Of a configuration that was read, so that it is known.
[[nodiscard]] const Architecture& architecture_of(const ModelConfig& config);

}  // namespace dynslice
