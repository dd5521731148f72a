#include "dynslice/walk/tree_walk.h"

#include "aten.h"
#include "dynslice/tensor/tree_attention.h"

namespace dynslice {
namespace {

// Attention and MLP of one layer for chunk after chunk.
class TreeLayer {
 public:
  TreeLayer(const LayerStep& step, const LayerContext& positions, const PrefixTree& tree)
      : step_(step), positions_(positions), longest_(tree.longest()) {}

  at::Tensor forward(const at::Tensor& x, const TreeSlice& slice) {
    const auto mix = [&](const at::Tensor& packed) { return mix_tokens(packed, slice); };
    return forward_half(kMlpHalf, step_.layer, step_.context, forward_attention(step_.layer, step_.context, x, mix));
  }

 private:
  // Every token attends to those on its path to the root.
  at::Tensor mix_tokens(const at::Tensor& packed, const TreeSlice& slice) {
    const DecoderLayer& layer = step_.layer;
    const int64_t heads = layer.shape.num_attention_heads, kv = layer.shape.num_key_value_heads;
    at::Tensor qkv = packed.view({1, packed.size(0), heads + 2 * kv, positions_.head_dim});
    const at::Tensor position = at::tensor(slice.positions).to(packed.device());
    place_heads_(layer, positions_, at_positions(positions_.rotary_of(layer), position), qkv);
    qkv = qkv.squeeze(0);
    if (!path_.keys.defined()) {
      path_.keys = at::empty({longest_, kv, positions_.head_dim}, qkv.options());
      path_.values = at::empty_like(path_.keys);
    }
    const int64_t window = layer.is_sliding ? positions_.sliding_window : 0;
    const at::Tensor attended = kernels::tree_attention(qkv, heads, kv, window, slice, path_, positions_.score_cap);
    extend_path(qkv, heads, kv, slice);
    return attended.unsqueeze(1);
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
