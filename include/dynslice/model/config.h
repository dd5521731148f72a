// What config.json or GGUF metadata says of a model, in architecture-neutral terms.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "dynslice/formats/gguf/gguf_file.h"
#include "dynslice/formats/safetensors/weight_packing.h"
#include "dynslice/support/json.h"
#include "dynslice/tensor/activation.h"

namespace dynslice {

enum class RopeScalingKind { kNone, kLinear, kLlama3, kYarn, kLongRope };

// Rotary position embedding: inverse frequency of pair j is theta^(-2j/d), d channels being rotated, then scaled.
struct RopeConfig {
  double theta = 10000.0;
  RopeScalingKind scaling = RopeScalingKind::kNone;
  double factor = 1.0;
  double low_freq_factor = 1.0;                  // llama3
  double high_freq_factor = 4.0;                 // llama3
  int64_t original_max_position_embeddings = 0;  // llama3, yarn, longrope
  double beta_fast = 32, beta_slow = 1;          // yarn: turns within that length between which is interpolated
  bool truncates = true;                         // yarn: to whole pairs
  double attention_factor = 1;                   // yarn, longrope: what queries and keys are multiplied by, each
  // Queries at position p are multiplied by 1 + query_growth ln(1 + ⌊p / original_max_position_embeddings⌋).
  double query_growth = 0;
  // longrope: d/2 divisors of the inverse frequencies, of contexts within the original length and of longer ones.
  std::vector<double> short_divisors, long_divisors;
  // When not empty (GGUF's rope_freqs.weight): d/2 divisors of the inverse frequencies, which then
  // carry the whole scaling.
  std::vector<double> frequency_divisors;
  // "proportional": of the pairs of a head this share turns, the first ones; the others stay as they are.
  double turning_share = 1;
};

// How the residual path of a half layer takes a stream x [in] to one of `out` coordinates in another basis. `fit`
// cuts x to its first `out` entries, or fills it up with zeros.
enum class ShortcutKind {
  kIdentity,   // x itself; in = out, no tensor
  kMatrix,     // W x: "weight" [out, in]
  kSymmetric,  // fit(x - Aᵀ A x), in <= out: "down.weight" A [rank, in]
  kLowRank,    // fit(x) + B A x: "down.weight" A [rank, in] and "up.weight" B [out, rank]
};

struct ShortcutShape {
  ShortcutKind kind = ShortcutKind::kIdentity;
  int64_t rank = 0;  // of kSymmetric and kLowRank
  bool operator==(const ShortcutShape&) const = default;
};

// What norms queries and keys have, if any.
enum class QueryKeyNorm {
  kNone,
  kHead,         // of every head, before it is rotated; one weight for all heads of a layer
  kRotatedHead,  // the same behind the rotation
  kWhole,        // of all heads together, before they are rotated
};

// A gated delta net in the place of attention (Yang et al., arXiv 2412.06464): a matrix [key_dim, value_dim] for every
// value head is what it remembers of all tokens so far. Value heads share the queries and keys of a key head.
struct DeltaShape {
  int64_t key_heads = 0;  // 0: there is none
  int64_t value_heads = 0;
  int64_t key_dim = 0;  // of a head
  int64_t value_dim = 0;
  int64_t taps = 0;  // of the convolution over tokens that queries, keys and values pass through
  [[nodiscard]] int64_t keys() const { return key_heads * key_dim; }
  [[nodiscard]] int64_t values() const { return value_heads * value_dim; }
  [[nodiscard]] int64_t channels() const { return 2 * keys() + values(); }  // queries, keys, values side by side
  bool operator==(const DeltaShape&) const = default;
};

// Widths of one decoder layer. In a dense model the three stream widths are hidden_size.
struct LayerShape {
  int64_t input_width = 0;   // of the stream that enters the layer
  int64_t middle_width = 0;  // of the stream between attention and MLP
  int64_t output_width = 0;  // of the stream that leaves the layer
  int64_t intermediate_size = 0;
  int64_t num_attention_heads = 0;  // 0: the layer is an MLP alone
  int64_t num_key_value_heads = 0;
  int64_t head_dim = 0;         // of attention
  ShortcutShape attn_shortcut;  // input_width → middle_width
  ShortcutShape mlp_shortcut;   // middle_width → output_width
  bool has_norm_weights = true;
  QueryKeyNorm query_key_norm = QueryKeyNorm::kNone;
  bool has_input_norms = true;    // attention and MLP read the stream normed
  bool has_branch_norms = false;  // what attention and MLP write is normed before it is added to the stream
  bool is_gated = true;           // down(act(gate x) * up x); else down(act(up x))
  bool has_output_gate = false;   // attention's output is multiplied by sigmoid(g): q_proj gives of every head q and g
  bool has_values = true;         // v_proj; else values are the keys as projected
  bool has_value_norm = false;    // every head's values are normed, without weights
  bool has_layer_scale = false;   // the stream that leaves the layer is multiplied by a number of its own
  DeltaShape delta = {};          // in the place of attention; heads and key-value heads are those of other layers then
  [[nodiscard]] bool is_delta() const { return delta.key_heads > 0; }
  [[nodiscard]] bool has_attention() const { return num_attention_heads > 0; }
  [[nodiscard]] int64_t read_rows() const {
    return (is_gated ? 2 : 1) * intermediate_size;
  }  // of the matrices that the MLP reads by
  bool operator==(const LayerShape&) const = default;
};

// How a checkpoint that holds more than a language model names what belongs to that.
enum class WrapperNames {
  kOutside,  // "language_model.model.layers.0...", "language_model.lm_head.weight"
  kInside,   // "model.language_model.layers.0...", "lm_head.weight"
};

struct ModelConfig {
  std::string model_type;  // of a row in model/architecture.h: "llama"
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;  // of the original model: what the norms divide by
  int64_t max_position_embeddings = 0;
  double rms_norm_eps = 1e-6;
  Activation activation = Activation::kSilu;
  double attention_scale = 0;  // what scores are multiplied by; 0: head_dim^(-1/2)
  double embedding_scale = 1;  // what rows of the embedding are multiplied by, rounded to the dtype of the forward
  double branch_scale = 1;     // what attention and MLP write is multiplied by before it is added to the stream
  double logit_scale = 1;      // what logits are multiplied by
  double score_cap = 0;        // scores s of attention become cap tanh(s / cap) before they are masked; 0: no cap
  double logit_cap = 0;        // the same of logits, scaled
  int64_t rotary_dim = 0;      // channels of a head that are rotated, its first ones; 0: all
  bool rotary_is_interleaved = false;  // pairs are (2j, 2j + 1), not (j, j + half)
  RopeConfig rope;
  std::optional<RopeConfig> sliding_rope;  // of the layers that slide, where it is another one
  bool tie_word_embeddings = false;
  bool qkv_bias = false;  // qwen2; llama with attention_bias
  bool o_bias = false;    // llama with attention_bias
  bool mlp_bias = false;
  bool has_centred_norms = false;         // norms with weights are layer norms, with biases; those without, RMS norms
  int64_t position_rows = 0;              // of the matrix of positions; 0: there is none
  int64_t first_position_row = 0;         // of position 0
  std::optional<int64_t> sliding_window;  // tokens a position sees at most, itself included
  std::vector<bool> layer_is_sliding;     // per layer; empty when all (or none) are
  std::vector<bool> layer_is_unrotated;   // per layer: no rotary embedding; empty when all have it
  std::vector<LayerShape> layers;
  int64_t embedding_width = 0;  // D_0: width of the stream that enters layer 0
  int64_t head_width = 0;       // width of the stream that enters the final norm
  // With a rotation, embed_tokens has hidden_size columns and embed_rotation [embedding_width, hidden_size] takes its
  // rows to the stream; likewise head_rotation [hidden_size, head_width] takes the final norm's output to the output
  // matrix. A tied matrix can so be stored once while embedding and head work in different bases. The bias of a layer
  // norm in front of the head is behind the rotation then.
  bool has_embedding_rotation = false;
  bool has_head_rotation = false;
  bool has_final_norm_weight = true;
  std::optional<int64_t> bos_token_id;
  std::optional<int64_t> eos_token_id;
  // How a source in compressed-tensors' format stores its weights. What is written from it is not packed.
  std::optional<WeightPacking> packing;
  // config.json as it came (for GGUF: an equivalent one) without "quantization_config", to be written out again. Of a
  // model that holds a language model beside other parts, "text_config"; the whole without that is `wrapper`.
  Json source;
  Json wrapper;  // null: the checkpoint is a language model alone
  WrapperNames wrapper_names = WrapperNames::kOutside;

  // Of the heads of a layer.
  [[nodiscard]] int64_t rotated_channels(const LayerShape& shape) const {
    return rotary_dim > 0 ? rotary_dim : shape.head_dim;
  }
  // Whether a layer's attention sees the last `sliding_window` tokens only.
  [[nodiscard]] bool slides(size_t layer) const {
    return sliding_window.has_value() && (layer_is_sliding.empty() || layer_is_sliding.at(layer));
  }
  // The first layer that slides or does not; null where there is none.
  [[nodiscard]] const LayerShape* first_that_slides(bool is_sliding) const;
  // Where layer norms were folded away, the stream must enter centred: without a rotation, which has that in it, and in
  // the coordinates of the embedding, its rows are.
  [[nodiscard]] bool centres_embedding() const {
    return has_centred_norms && !layers.front().has_norm_weights && !has_embedding_rotation &&
           embedding_width == hidden_size;
  }
  // Columns of embed_tokens and of the output matrix.
  [[nodiscard]] int64_t embedding_columns() const { return has_embedding_rotation ? hidden_size : embedding_width; }
  [[nodiscard]] int64_t head_columns() const { return has_head_rotation ? hidden_size : head_width; }
  [[nodiscard]] int64_t num_layers() const { return static_cast<int64_t>(layers.size()); }
  // True when every runtime that knows `model_type` can run these shapes.
  [[nodiscard]] bool is_ordinary() const;
  // True when every layer has attention and an MLP as those of the dense model.
  [[nodiscard]] bool has_whole_layers() const;
  // True when a checkpoint of this configuration holds the wrapper's other parts too: they fit an ordinary model whose
  // stream is as wide as it was.
  [[nodiscard]] bool is_wrapped() const;
  // True when the stream is narrower somewhere, or passes through shortcut matrices: the layers' bases differ.
  [[nodiscard]] bool is_sliced() const;
};

// Reads and checks a config.json, dense or written by dynslice. Throws kBadInput naming file and key; an
// unsupported model_type or rope scaling lists what is supported.
[[nodiscard]] ModelConfig read_config(const std::filesystem::path& config_json);

// The same from GGUF metadata: general.architecture is one that model/architecture.h names.
[[nodiscard]] ModelConfig read_config(const GgufFile& file);

// config.json for a checkpoint with these shapes: `source` itself for an ordinary model (with the numbers that
// changed), else a "dynslice" config that read_config understands.
[[nodiscard]] OrderedJson write_config(const ModelConfig& config, const std::string& dtype_name);

// Parameters of a shortcut, and its multiply-adds for one token.
[[nodiscard]] int64_t shortcut_parameters(const ShortcutShape& shortcut, int64_t in, int64_t out);
[[nodiscard]] int64_t shortcut_multiply_adds(const ShortcutShape& shortcut, int64_t in, int64_t out);

// Learned parameters (a tied embedding counts once), and multiply-adds of the linear layers, shortcuts and head
// for one token (attention scores excluded: they depend on the context).
struct ModelCost {
  int64_t parameters = 0;
  int64_t multiply_adds_per_token = 0;
};
[[nodiscard]] ModelCost count_cost(const ModelConfig& config);

}  // namespace dynslice
