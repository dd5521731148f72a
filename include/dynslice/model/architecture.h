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
  kDeltaInput,
  kDeltaGate,
  kDeltaBeta,
  kDeltaDecay,
  kDeltaConvolution,
  kDeltaStep,
  kDeltaRate,
  kDeltaNorm,
  kDeltaOutput,
  kAttentionBranchNorm,
  kMlpNorm,
  kGate,
  kUp,
  kDown,
  kMlpBranchNorm,
  kLayerScale,
};

enum class Half { kAttention, kMlp };

// Of a half layer: the norm in front of it, what reads the stream, what works inside, what writes to the stream, and
// the norm of what is written.
enum class PartSide { kNorm, kReads, kInside, kWrites, kBehind };

struct LayerPart {
  Role role;
  // "self_attn.q_proj": its tensors are module + ".weight" and, with a bias, ".bias". These names are ours: Llama's,
  // and GLM-4's for what Llama lacks. An architecture's row says where a checkpoint of it has others.
  std::string_view module;
  std::string_view gguf;  // "attn_q"
  Half half;
  PartSide side;
  int64_t (*rows)(const LayerShape& shape);
  int64_t (*columns)(const LayerShape& shape);  // null: a vector of so many rows
  bool (*is_in)(const LayerShape& shape);       // whether a layer of this shape has it
  bool ModelConfig::* bias;                     // whether it has a bias; null: never
  bool is_rotary;                               // whether its rows are rotated in pairs
  // Of a convolution [rows, 1, taps].
  int64_t (*taps)(const LayerShape& shape) = nullptr;

  [[nodiscard]] bool is_linear() const { return columns != nullptr; }
  // Of its weight.
  [[nodiscard]] std::vector<int64_t> sizes(const LayerShape& shape) const {
    if (taps != nullptr) return {rows(shape), 1, taps(shape)};
    if (!is_linear()) return {rows(shape)};
    return {rows(shape), columns(shape)};
  }
  [[nodiscard]] bool has_bias(const ModelConfig& config) const { return bias != nullptr && config.*bias; }
};

// All that a layer can have, in the order of its tensors in a checkpoint.
[[nodiscard]] std::span<const LayerPart> layer_parts();

// The part that the tensor of that name in a layer belongs to ("mlp.up_proj.weight"); null for shortcuts and unknown
// names.
[[nodiscard]] const LayerPart* find_part(std::string_view tensor);

// Whether it is a norm of the stream, of branches, or of queries and keys.
[[nodiscard]] bool is_norm(Role role);

// The part with that role.
[[nodiscard]] const LayerPart& part_of(Role role);

// The last words of the modules of all linears: "q_proj", "k_proj", ...
[[nodiscard]] std::vector<std::string> linear_names();

// ---- Architectures ----

enum class BiasRule {
  kNone,
  kQueryKeyValue,  // these three, always
  kFlags,          // attention_bias: query, key, value and output; mlp_bias: the MLP
  kAttentionFlag,  // attention_bias alone
  kReadersFlag,    // attention_bias: query, key and value
  kOutputFlag,     // attention_bias: query, key and value, unless false; attention_out_bias: output; mlp_bias
  kAll,            // all linears, always
};

enum class WindowRule {
  kNone,
  kAllLayers,  // sliding_window is that of every layer
  kByLayer,    // with use_sliding_window, of those that layer_types or max_window_layers names
  kByPattern,  // of those that layer_types names, else of all but every window_period-th
};

// Which output matrix llama.cpp's own of an architecture takes.
enum class GgufHead { kAny, kTied, kOwn };

// A module that an architecture's files have under another name than a LayerPart says.
struct Renaming {
  std::string_view ours;    // the part's `module`
  std::string_view theirs;  // "pre_feedforward_layernorm", in GGUF "post_attention_norm"
  bool is_whole = false;    // `theirs` is the name of the tensor: no ".weight" follows
};

// Linears that an architecture's files have as one matrix, their rows one after the other.
struct Fusion {
  std::string_view module;  // in safetensors: "self_attn.qkv_proj"; empty: they are apart there
  std::string_view gguf;    // in GGUF: "attn_qkv"; empty: they are apart there
  std::span<const Role> roles;
};

struct Architecture {
  std::string_view model_type;  // config.json's
  std::string_view class_name;  // transformers': "LlamaForCausalLM"
  std::string_view gguf;        // general.architecture of its GGUF files; empty: llama.cpp does not know it
  // The architecture that llama.cpp knows with sizes of its own for every layer, maybe the same; empty: none.
  std::string_view gguf_of_unequal_layers = "";
  // What transformers assumes where config.json is silent; 0: what the other sizes imply.
  int64_t max_position_embeddings = 0;
  int64_t num_key_value_heads = 0;
  int64_t head_dim = 0;
  // Layers that see all have heads of this width (global_head_dim), with attention_k_eq_v no values of their own, and
  // another number of key-value heads then (num_global_key_value_heads); 0: heads are alike in all layers.
  int64_t global_head_dim = 0;
  double rms_norm_eps = 1e-6;
  double rope_theta = 10000;
  double attention_scale = 0;         // what scores are multiplied by; 0: head_dim^(-1/2), or what config.json says
  int64_t query_pre_attn_scalar = 0;  // scores are multiplied by its root's inverse; 0: there is no such key
  bool tie_word_embeddings = false;
  BiasRule biases = BiasRule::kNone;
  WindowRule window = WindowRule::kNone;
  int64_t sliding_window = 4096;       // tokens, where config.json is silent; 0: no window
  int64_t window_period = 0;           // of kByPattern: every such layer sees all
  double sliding_rope_theta = 0;       // of the layers that slide, which rotate in another way; 0: all rotate alike
  double turning_share = 0;            // of the pairs of heads that see all, rope_type "proportional"; 0: there is none
  int64_t unrotated_period = 0;        // every such layer has no rotary embedding, unless no_rope_layers says which
  bool rotates_sliding_only = false;   // where some layers slide, the others have no rotary embedding
  bool has_dynamic_alpha = false;      // rope_type "dynamic" means a theta multiplied by alpha^(d / (d - 2))
  double partial_rotary_factor = 0;    // share of a head that is rotated; 0: there is no such key, and all is
  bool rotary_is_interleaved = false;  // pairs are (2j, 2j + 1), not (j, j + half)
  bool has_longrope = false;           // rope_type "longrope", by old names "su" and "yarn"
  bool has_query_growth = false;       // llama_4_scaling_beta, which makes queries grow with their position
  QueryKeyNorm query_key_norm = QueryKeyNorm::kNone;
  // All layers but every delta_period-th, or those that layer_types names, have a gated delta net in the place of
  // attention; 0: there is none. The other layers' attention has an output gate.
  int64_t delta_period = 0;
  bool has_input_norms = true;    // in front of attention and MLP
  bool has_value_norms = false;   // of every head's values, without weights
  bool has_layer_scales = false;  // numbers that the streams which leave layers are multiplied by
  bool has_branch_norms = false;  // RMS norms of what attention and MLP write, before it is added to the stream
  // Granite's four: attention_multiplier, embedding_multiplier, residual_multiplier, and logits_scaling, a divisor.
  bool has_multipliers = false;
  // What attn_logit_softcapping and final_logit_softcapping are where config.json is silent; 0: there are no such keys.
  double score_cap = 0;
  double logit_cap = 0;
  bool may_cap_logits = false;  // final_logit_softcapping alone, none where config.json is silent
  // Its norms are layer norms (Ba et al., arXiv 1607.06450), with biases: what they read is centred first.
  bool has_centred_norms = false;
  // Positions are rows of a matrix, the first of them this one, which are added to the embedding; 0: there is none, and
  // heads are rotated.
  int64_t first_position_row = 0;
  bool is_gated = true;  // its MLPs: down(act(gate x) * up x), not down(act(up x))
  Activation activation = Activation::kSilu;
  std::string_view activation_key = "hidden_act";  // config.json's
  bool scales_embedding = false;                   // rows of the embedding are multiplied by √hidden_size
  // What a checkpoint's norm weights lack of the factor that they stand for: Gemma's are w of 1 + w.
  double norm_offset = 0;
  std::string_view size_key = "intermediate_size";  // config.json's, of the neurons of an MLP
  std::string_view stem = "model.";                 // what the names of all tensors but the head's begin with
  std::string_view final_norm = "norm";
  std::span<const Renaming> names = {};
  std::span<const Renaming> gguf_names = {};
  std::span<const Fusion> fusions = {};
  // Of llama.cpp's own: whether the two rows of a rotary pair lie side by side in the file, whether the heads together
  // must be as wide as the stream, whether frequencies may be divided pair by pair (rope_freqs.weight), and whether
  // attention's output and the MLP may have biases.
  bool pairs_rotary_rows = false;
  bool heads_fill_stream = false;
  bool has_rope_divisors = false;
  bool has_output_bias = false;
  bool has_mlp_bias = false;
  GgufHead gguf_head = GgufHead::kAny;
  // Of llama.cpp's own, too: the number of layers by which it tells the one model whose scores are scaled by the share
  // of the stream that a head has, that of the one model whose layers slide, and whether layers that slide have the
  // theta of the others, unscaled. 0: none, any.
  int64_t gguf_layers_of_27b = 0;
  int64_t gguf_layers_that_slide = 0;
  bool gguf_has_one_theta = false;

  [[nodiscard]] bool has_positions() const { return first_position_row > 0; }
  // A norm behind the matrix that writes runs over the whole width of the stream, and scales what comes out of it:
  // whether a basis of the stream can be cut, and whether linear maps can be folded into the matrices that write.
  [[nodiscard]] bool can_cut_stream() const { return !has_branch_norms; }
  [[nodiscard]] bool can_fold_maps() const { return !has_branch_norms; }
  // A model with a narrower stream, its directions in one basis for all layers, would centre that stream.
  [[nodiscard]] bool can_be_narrower() const { return can_cut_stream() && !has_centred_norms; }
  // A norm over all heads together would make something else of those that are left,
  // and heads are not removed where some layers have no attention.
  [[nodiscard]] bool can_remove_heads() const { return query_key_norm != QueryKeyNorm::kWhole && !has_delta_layers(); }
  [[nodiscard]] bool has_delta_layers() const { return delta_period > 0; }
  // Whether layers are alike, so that one can stand for some.
  [[nodiscard]] bool can_merge_layers() const { return !has_delta_layers() && global_head_dim == 0; }
};

[[nodiscard]] std::span<const Architecture> architectures();

// Null for a model type that is not supported.
[[nodiscard]] const Architecture* find_architecture(std::string_view model_type);

// The module's name in GGUF files of the architecture: "attn_q".
[[nodiscard]] std::string_view gguf_module(const Architecture& architecture, const LayerPart& part);
// The part that has that name there; null where there is none.
[[nodiscard]] const LayerPart* find_gguf_part(const Architecture& architecture, std::string_view module);

// The fusion that a part is in, in safetensors or in GGUF; null where its tensors are its own.
[[nodiscard]] const Fusion* fusion_of(const Architecture& architecture, Role role, std::string_view Fusion::* format);

// transformers' name of an activation: "silu".
[[nodiscard]] std::string_view name_of(Activation activation);

// Of a configuration that was read, so that it is known.
[[nodiscard]] const Architecture& architecture_of(const ModelConfig& config);

}  // namespace dynslice
