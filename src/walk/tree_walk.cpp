#include "dynslice/walk/tree_walk.h"

#include "aten.h"
#include "dynslice/tensor/kernels.h"
#include "dynslice/tensor/tree_attention.h"

namespace dynslice {
namespace {

// Attention and MLP of one layer for chunk after chunk.
class TreeLayer {
 public:
  TreeLayer(const LayerStep& step, const LayerContext& positions, const PrefixTree& tree)
      : step_(step), positions_(positions), longest_(tree.longest()) {}

  at::Tensor forward(const at::Tensor& x, const TreeSlice& slice) {
    return forward_mlp(step_.layer, step_.context, attention(x, slice));
  }

 private:
  at::Tensor attention(const at::Tensor& x, const TreeSlice& slice) {
    const DecoderLayer& layer = step_.layer;
    if (!layer.shape.has_attention()) return x;
    const int64_t heads = layer.shape.num_attention_heads, kv = layer.shape.num_key_value_heads, rows = x.size(0);
    const at::Tensor packed =
        kernels::linear(attention_input(layer, step_.context, x), layer.qkv.weight, layer.qkv.bias);
    at::Tensor qkv = packed.view({1, rows, heads + 2 * kv, positions_.head_dim});
    norm_heads_(layer, positions_, qkv);
    const at::Tensor position = at::tensor(slice.positions).to(x.device());
    kernels::apply_rope_(qkv, heads + kv, positions_.cos.index_select(0, position),
                         positions_.sin.index_select(0, position));
    qkv = qkv.squeeze(0);
    if (!path_.keys.defined()) {
      path_.keys = at::empty({longest_, kv, positions_.head_dim}, qkv.options());
      path_.values = at::empty_like(path_.keys);
    }
    const int64_t window = layer.is_sliding ? positions_.sliding_window : 0;
    const at::Tensor attended = kernels::tree_attention(qkv, heads, kv, window, slice, path_);
    extend_path(qkv, heads, kv, slice);
    const at::Tensor branch = kernels::linear(attended.unsqueeze(1), layer.o_proj.weight, layer.o_proj.bias);
    return add_residual(branch, x, layer.attn_shortcut);
  }

  void extend_path(const at::Tensor& qkv, int64_t heads, int64_t kv, const TreeSlice& slice) {
    if (slice.path_rows.empty()) return;
    const at::Tensor open = qkv.index_select(0, at::tensor(slice.path_rows).to(qkv.device()));
    path_.keys.narrow(0, slice.kept, open.size(0)).copy_(open.narrow(1, heads, kv));
    path_.values.narrow(0, slice.kept, open.size(0)).copy_(open.narrow(1, heads + kv, kv));
  }

  const LayerStep& step_;
  const LayerContext& positions_;
  int64_t longest_;
  TreePath path_;
};

}  // namespace

void run_tree(const LayerWalk& walk, const std::string& task, const PrefixTree& tree, ResidualStream& stream,
              const WalkSpan& span) {
  std::vector<int64_t> chunk_rows;
  for (const at::Tensor& chunk : stream.chunks) chunk_rows.push_back(chunk.size(0));
  const std::vector<TreeSlice> slices = slice_tree(tree, chunk_rows);
  const LayerContext positions = make_position_context(walk.config(), tree.longest(), walk.options().device);
  const auto visit = [&](LayerStep& step) {
    TreeLayer layer(step, positions, tree);
    auto slice = slices.begin();
    step.transform(stream, [&](const at::Tensor& x) { return layer.forward(x, *slice++); });
  };
  walk.run(task, stream.tokens(), visit, std::nullopt, span);
}

}  // namespace dynslice
