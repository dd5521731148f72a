// One decoder layer in memory: its tensors, how they are loaded, and under which names they are written.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "dynslice/model/architecture.h"
#include "dynslice/model/checkpoint.h"
#include "dynslice/model/config.h"

namespace dynslice {

// y = x weightᵀ + bias. weight [out, in]; bias [out] or undefined.
struct Linear {
  at::Tensor weight;
  at::Tensor bias;
};

// The residual path of a half layer; which tensors are there depends on the kind (see ShortcutKind). In memory the
// symmetric kind has both factors, `up` being -Aᵀ, and so is computed as the low-rank kind is.
struct Shortcut {
  ShortcutKind kind = ShortcutKind::kIdentity;
  at::Tensor weight;  // [out, in] fp32
  at::Tensor down;    // [rank, in]; undefined for rank 0
  at::Tensor up;      // [out or in, rank]
};

// Linears that read the same input are packed into one matrix, so that one product serves them.
struct DecoderLayer {
  LayerShape shape;
  at::Tensor input_norm;            // [input_width]; undefined when folded into qkv, or without such norms
  at::Tensor input_norm_bias;       // of a layer norm: undefined in RMS norms
  Linear qkv;                       // rows: heads of queries, keys and, where it has them, values; or undefined
  at::Tensor query_norm, key_norm;  // [head_dim], shared by all heads, or as wide as all heads; undefined without
  // Of a gated delta net, in the place of attention, whose qkv has channels(), values() and two times value_heads rows.
  at::Tensor delta_convolution;       // [channels(), 1, taps]
  at::Tensor delta_step, delta_rate;  // [value_heads]
  at::Tensor delta_norm;              // [value_dim]
  Linear o_proj;                      // [middle_width, heads * head_dim]
  at::Tensor attention_branch_norm;   // [middle_width]; undefined without such norms
  at::Tensor post_attention_norm;     // [middle_width]; undefined when folded into gate_up, or without such norms
  at::Tensor post_attention_norm_bias;
  Linear gate_up;              // rows: gate (of a gated MLP), up; [read_rows(), middle_width]
  Linear down_proj;            // [output_width, intermediate_size]
  at::Tensor mlp_branch_norm;  // [output_width]; undefined without such norms
  at::Tensor scale;            // [1]: what the stream that leaves the layer is multiplied by; undefined where that is 1
  Shortcut attn_shortcut;      // input_width → middle_width
  Shortcut mlp_shortcut;       // middle_width → output_width
  double branch_scale = 1;     // what both halves write is multiplied by before it is added to the stream
  bool is_rotated = true;      // queries and keys have rotary embeddings
  bool is_sliding = false;     // attention sees the last `sliding_window` tokens only
};

// A half layer: the parts that norm, read and write its stream. Whoever treats attention and MLP alike takes it as an
// argument.
struct HalfLayer {
  Half which;
  const char* name;                 // "attention", for messages
  at::Tensor DecoderLayer::* norm;  // undefined when folded into `reads`
  at::Tensor DecoderLayer::* norm_bias;
  Linear DecoderLayer::* reads;
  Linear DecoderLayer::* writes;
  at::Tensor DecoderLayer::* branch_norm;  // of what is written; undefined in most architectures
  Shortcut DecoderLayer::* shortcut;
  at::Tensor DecoderLayer::* scale;  // of the stream that leaves it; null: there is none

  // Whether a layer of this shape has it.
  bool is_in(const LayerShape& shape) const { return which == Half::kMlp || shape.has_attention(); }
};
inline constexpr HalfLayer kAttentionHalf{Half::kAttention,
                                          "attention",
                                          &DecoderLayer::input_norm,
                                          &DecoderLayer::input_norm_bias,
                                          &DecoderLayer::qkv,
                                          &DecoderLayer::o_proj,
                                          &DecoderLayer::attention_branch_norm,
                                          &DecoderLayer::attn_shortcut,
                                          nullptr};
inline constexpr HalfLayer kMlpHalf{Half::kMlp,
                                    "MLP",
                                    &DecoderLayer::post_attention_norm,
                                    &DecoderLayer::post_attention_norm_bias,
                                    &DecoderLayer::gate_up,
                                    &DecoderLayer::down_proj,
                                    &DecoderLayer::mlp_branch_norm,
                                    &DecoderLayer::mlp_shortcut,
                                    &DecoderLayer::scale};
// In the order of the forward.
inline constexpr std::array kHalfLayers = {kAttentionHalf, kMlpHalf};

// "the attention of layer 3", for messages.
std::string name_of(const HalfLayer& half, int64_t layer);

// Where a layer keeps a part: as a tensor of its own, such as a norm, or, a linear, as rows of a matrix. Null where the
// part is none.
at::Tensor DecoderLayer::* own_member(Role role);
at::Tensor DecoderLayer::* norm_bias_member(Role role);  // of norms that may be layer norms
Linear DecoderLayer::* matrix_member(Role role);

// A linear in its matrix.
struct MatrixPart {
  const LayerPart* part = nullptr;
  Linear DecoderLayer::* matrix = nullptr;
  int64_t first_row = 0, rows = 0, columns = 0;
};
// The linears of a layer of this shape, in the order of layer_parts().
[[nodiscard]] std::vector<MatrixPart> matrix_parts(const LayerShape& shape);

// The matrices of a layer of this shape: qkv and o_proj where it has attention, gate_up, down_proj.
[[nodiscard]] std::vector<Linear DecoderLayer::*> matrices_of(const LayerShape& shape);

// All norms, weights and biases of the layer, some of them undefined; no shortcuts.
[[nodiscard]] std::vector<at::Tensor*> tensors_of(DecoderLayer& layer);

// Leaves the MLP alone: the layer's attention, its norms included, goes. The shape is the caller's to change.
void remove_attention(DecoderLayer& layer);

// Applies `visit` to every tensor of the layer, shortcuts included, in the order in which the forward reads them.
template <typename Layer, typename Visitor>
void for_each_tensor(Layer& layer, Visitor visit) {
  const auto parts = [&](Half half, bool writes) {
    std::vector<Linear DecoderLayer::*> visited;
    for (const LayerPart& part : layer_parts()) {
      if (part.half != half || (part.side >= PartSide::kWrites) != writes) continue;
      Linear DecoderLayer::* const matrix = matrix_member(part.role);
      if (matrix == nullptr) {
        visit(layer.*own_member(part.role));
        if (const auto bias = norm_bias_member(part.role)) visit(layer.*bias);
      } else if (std::find(visited.begin(), visited.end(), matrix) == visited.end()) {
        visited.push_back(matrix);
        visit((layer.*matrix).weight);
        visit((layer.*matrix).bias);
      }
    }
  };
  const auto half = [&](Half which, auto& shortcut) {
    parts(which, false);
    visit(shortcut.weight);
    visit(shortcut.down);
    parts(which, true);
    visit(shortcut.up);
  };
  half(Half::kAttention, layer.attn_shortcut);
  half(Half::kMlp, layer.mlp_shortcut);
}

// Names of the tensors of layer `index` in a checkpoint ("model.layers.3.self_attn.q_proj.weight").
std::string layer_tensor_name(int64_t index, const std::string& suffix);

// Loads layer `index`; linear weights in `dtype`, norms and shortcuts in fp32 (of low-rank shortcuts the factors are
// in `dtype`: they are a small correction of the stream, which itself stays fp32). Throws as Checkpoint::load does.
DecoderLayer load_decoder_layer(const Checkpoint& checkpoint, int64_t index, at::ScalarType dtype, at::Device device);

// x, or a stream's change, as what leaves the half layer has it.
at::Tensor scaled(const HalfLayer& half, const DecoderLayer& layer, const at::Tensor& x);

// The layer with its linear weights in `dtype`; those that are already are shared, not copied.
DecoderLayer with_dtype(DecoderLayer layer, at::ScalarType dtype);

// The layer's tensors under the names that they have in a checkpoint ("mlp.up_proj.weight"): views of its matrices.
std::vector<std::pair<std::string, at::Tensor>> layer_tensors(const DecoderLayer& layer);

// Folds the norm weights into the linears that read them, which leaves weightless RMS norms. Of layer norms the biases
// go the same way, and the centring into the matrices that write (Ashkboos et al., arXiv 2401.15024, section 3.2):
// what enters the layer must be centred.
void fold_norms(DecoderLayer& layer);

}  // namespace dynslice
