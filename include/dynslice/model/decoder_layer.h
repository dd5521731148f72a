// One decoder layer in memory and its forward. The same forward serves dense, sliced and modular layers of
// every supported architecture; what differs are the shapes and which tensors are there.
#pragma once

#include <ATen/core/Tensor.h>

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
  at::Tensor input_norm;            // [input_width]; undefined when folded into qkv
  Linear qkv;                       // rows: query heads, key heads, value heads; undefined without attention
  at::Tensor query_norm, key_norm;  // [head_dim], shared by all heads; undefined without such norms
  Linear o_proj;                    // [middle_width, heads * head_dim]
  at::Tensor post_attention_norm;   // [middle_width]; undefined when folded into gate_up
  Linear gate_up;                   // rows: gate (of a gated MLP), up; [read_rows(), middle_width]
  Linear down_proj;                 // [output_width, intermediate_size]
  Shortcut attn_shortcut;           // input_width → middle_width
  Shortcut mlp_shortcut;            // middle_width → output_width
  bool is_sliding = false;          // attention sees the last `sliding_window` tokens only
};

// Where a layer keeps a part: a norm as a tensor of its own, a linear as rows of a matrix. Null where the part is none.
at::Tensor DecoderLayer::* norm_member(Role role);
Linear DecoderLayer::* matrix_member(Role role);

// A linear in its matrix.
struct MatrixPart {
  const LayerPart* part = nullptr;
  Linear DecoderLayer::* matrix = nullptr;
  int64_t first_row = 0, rows = 0, columns = 0;
};
// The linears of a layer of this shape, in the order of layer_parts().
std::vector<MatrixPart> matrix_parts(const LayerShape& shape, int64_t head_dim);

// The matrices of a layer of this shape: qkv and o_proj where it has attention, gate_up, down_proj.
std::vector<Linear DecoderLayer::*> matrices_of(const LayerShape& shape);

// All norms, weights and biases of the layer, some of them undefined; no shortcuts.
std::vector<at::Tensor*> tensors_of(DecoderLayer& layer);

// Leaves the MLP alone: the layer's attention, its norms included, goes. The shape is the caller's to change.
void remove_attention(DecoderLayer& layer);

// Applies `visit` to every tensor of the layer, shortcuts included, in the order in which the forward reads them.
template <typename Layer, typename Visitor>
void for_each_tensor(Layer& layer, Visitor visit) {
  const auto parts = [&](Half half, bool writes) {
    Linear DecoderLayer::* last = nullptr;
    for (const LayerPart& part : layer_parts()) {
      if (part.half != half || (part.side == PartSide::kWrites) != writes) continue;
      Linear DecoderLayer::* const matrix = matrix_member(part.role);
      if (matrix == nullptr) {
        visit(layer.*norm_member(part.role));
      } else if (matrix != last) {
        visit((layer.*matrix).weight);
        visit((layer.*matrix).bias);
      }
      last = matrix;
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

// What all layers of a model share during a walk over windows of one length.
struct LayerContext {
  int64_t hidden_size = 0;  // the original one: the norms' divisor, whatever the width
  int64_t head_dim = 0;
  double rms_norm_eps = 0;
  at::Tensor sliding_mask;     // [T, S] fp32, additive, S positions seen; undefined when no window is shorter than S
  at::Tensor causal_mask;      // the same for layers that do not slide; undefined where S is T or T is 1
  at::Tensor cos, sin;         // [T, head_dim / 2], fp32
  int64_t sliding_window = 0;  // tokens a position of a sliding layer sees at most, itself included; 0: all
};

// Keys (rotated) and values of the tokens that a layer has seen, for tokens that come later.
struct LayerCache {
  at::Tensor keys, values;  // [B, kv_heads, capacity, head_dim]; fp32 on the CPU
  int64_t length = 0;       // positions that are filled
};

LayerContext make_layer_context(const ModelConfig& config, int64_t window_length, at::Device device);

// The same without the masks, whose size grows with the square of the length: the start of continued contexts.
LayerContext make_position_context(const ModelConfig& config, int64_t positions, at::Device device);

// What tokens need that continue a sequence: `length` of them at positions from `first` on. `positions` holds the
// rotary tables of at least first + length positions.
LayerContext continued_context(const LayerContext& positions, int64_t first, int64_t length);

// Names of the tensors of layer `index` in a checkpoint ("model.layers.3.self_attn.q_proj.weight").
std::string layer_tensor_name(int64_t index, const std::string& suffix);

// Loads layer `index`; linear weights in `dtype`, norms and shortcuts in fp32 (of low-rank shortcuts the factors are
// in `dtype`: they are a small correction of the stream, which itself stays fp32). Throws as Checkpoint::load does.
DecoderLayer load_decoder_layer(const Checkpoint& checkpoint, int64_t index, at::ScalarType dtype, at::Device device);

// The layer with its linear weights in `dtype`; those that are already are shared, not copied.
DecoderLayer with_dtype(DecoderLayer layer, at::ScalarType dtype);

// The layer's tensors under the names that they have in a checkpoint ("mlp.up_proj.weight"): views of its matrices.
std::vector<std::pair<std::string, at::Tensor>> layer_tensors(const DecoderLayer& layer, int64_t head_dim);

// Folds the norm weights into the linears that read them, which leaves weightless norms.
void fold_norms(DecoderLayer& layer);

// What the linears of a layer read, in the dtype of the weights: x [B, T, input_width] → what qkv reads
// [B, T, input_width] and, behind that, what o_proj reads [B, T, heads * head_dim]; x [B, T, middle_width] → what
// gate_up reads [B, T, middle_width] and what down_proj reads [B, T, intermediate_size].
at::Tensor attention_input(const DecoderLayer& layer, const LayerContext& context, const at::Tensor& x);
at::Tensor attention_inner(const DecoderLayer& layer, const LayerContext& context, const at::Tensor& x);
at::Tensor mlp_input(const DecoderLayer& layer, const LayerContext& context, const at::Tensor& x);
at::Tensor mlp_inner(const DecoderLayer& layer, const LayerContext& context, const at::Tensor& x);

// Norms the heads of queries and keys in place, where the layer has such norms: qkv [.., heads + 2 kv_heads, head_dim],
// as projected.
void norm_heads_(const DecoderLayer& layer, const LayerContext& context, at::Tensor& qkv);

// What attention and MLP add to the stream: x [B, T, input_width] → [B, T, middle_width], and x [B, T, middle_width]
// → [B, T, output_width], in the dtype of the weights; x is fp32 or of that dtype.
at::Tensor attention_branch(const DecoderLayer& layer, const LayerContext& context, const at::Tensor& x);
at::Tensor mlp_branch(const DecoderLayer& layer, const LayerContext& context, const at::Tensor& x);

// shortcut(x) [..., out] in fp32.
at::Tensor pass(const Shortcut& shortcut, const at::Tensor& x, int64_t out);

// branch + shortcut(x) in fp32; `branch` is used up.
at::Tensor add_residual(at::Tensor branch, const at::Tensor& x, const Shortcut& shortcut);

// x [B, T, input_width] fp32 → the stream between attention and MLP [B, T, middle_width] fp32.
at::Tensor forward_attention(const DecoderLayer& layer, const LayerContext& context, const at::Tensor& x);

// The same for x that continues the sequences which the cache has seen, and is added to it. `context` is one of
// continued_context.
at::Tensor forward_attention(const DecoderLayer& layer, const LayerContext& context, const at::Tensor& x,
                             LayerCache& cache);

// x [B, T, middle_width] fp32 → the stream that leaves the layer [B, T, output_width] fp32.
at::Tensor forward_mlp(const DecoderLayer& layer, const LayerContext& context, const at::Tensor& x);

}  // namespace dynslice
