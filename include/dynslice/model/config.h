// What config.json or GGUF metadata says of a model, in architecture-neutral terms.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "dynslice/support/gguf_file.h"
#include "dynslice/support/json.h"

namespace dynslice {

enum class RopeScalingKind { kNone, kLinear, kLlama3 };

// Rotary position embedding: inverse frequency of pair j is theta^(-2j/head_dim), then scaled.
struct RopeConfig {
  double theta = 10000.0;
  RopeScalingKind scaling = RopeScalingKind::kNone;
  double factor = 1.0;
  double low_freq_factor = 1.0;                  // llama3
  double high_freq_factor = 4.0;                 // llama3
  int64_t original_max_position_embeddings = 0;  // llama3
  // When not empty (GGUF's rope_freqs.weight): head_dim/2 divisors of the inverse frequencies, which then
  // carry the whole scaling.
  std::vector<double> frequency_divisors;
};

// Widths of one decoder layer. In a dense model the three stream widths are hidden_size.
struct LayerShape {
  int64_t input_width = 0;   // of the stream that enters the layer
  int64_t middle_width = 0;  // of the stream between attention and MLP
  int64_t output_width = 0;  // of the stream that leaves the layer
  int64_t intermediate_size = 0;
  int64_t num_attention_heads = 0;
  int64_t num_key_value_heads = 0;
  bool has_shortcuts = false;  // attn_shortcut [middle, input] and mlp_shortcut [output, middle] on the residual paths
  bool has_norm_weights = true;
  bool operator==(const LayerShape&) const = default;
};

struct ModelConfig {
  std::string model_type;  // "llama", "mistral", "qwen2": decides names of tensors, not of models
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;  // of the original model: what the norms divide by
  int64_t head_dim = 0;
  int64_t max_position_embeddings = 0;
  double rms_norm_eps = 1e-6;
  RopeConfig rope;
  bool tie_word_embeddings = false;
  bool qkv_bias = false;  // qwen2; llama with attention_bias
  bool o_bias = false;    // llama with attention_bias
  bool mlp_bias = false;
  std::optional<int64_t> sliding_window;  // tokens a position sees at most, itself included
  std::vector<bool> layer_is_sliding;     // per layer; empty when all (or none) are
  std::vector<LayerShape> layers;
  int64_t embedding_width = 0;  // columns of embed_tokens: D_0
  int64_t head_width = 0;       // columns of lm_head: width of the stream that enters the final norm
  bool has_final_norm_weight = true;
  std::optional<int64_t> bos_token_id;
  std::optional<int64_t> eos_token_id;
  Json source;  // config.json as it came (for GGUF: an equivalent one), to be written out again

  int64_t num_layers() const { return static_cast<int64_t>(layers.size()); }
  // True when every runtime that knows `model_type` can run these shapes.
  bool is_ordinary() const;
  // True when the stream is narrower somewhere, or passes through shortcut matrices: the layers' bases differ.
  bool is_sliced() const;
};

// Reads and checks a config.json, dense or written by dynslice. Throws kBadInput naming file and key; an
// unsupported model_type or rope scaling lists what is supported.
ModelConfig read_config(const std::filesystem::path& config_json);

// The same from GGUF metadata (general.architecture llama, qwen2).
ModelConfig read_config(const GgufFile& file);

// config.json for a checkpoint with these shapes: `source` itself for an ordinary model (with the numbers that
// changed), else a "dynslice" config that read_config understands.
OrderedJson write_config(const ModelConfig& config, const std::string& dtype_name);

// Learned parameters (a tied embedding counts once), and multiply-adds of the linear layers, shortcuts and head
// for one token (attention scores excluded: they depend on the context).
struct ModelCost {
  int64_t parameters = 0;
  int64_t multiply_adds_per_token = 0;
};
ModelCost count_cost(const ModelConfig& config);

}  // namespace dynslice
