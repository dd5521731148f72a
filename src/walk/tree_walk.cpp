#include "dynslice/walk/tree_walk.h"

#include <map>

#include "aten.h"
#include "dynslice/tensor/tree_attention.h"

namespace dynslice {
namespace {

// Attention and MLP of one layer for chunk after chunk.
class TreeLayer {
 public:
  TreeLayer(const LayerStep& step, const LayerContext& positions, const PrefixTree& tree,
            const std::vector<bool>& branches)
      : step_(step), positions_(positions), longest_(tree.longest()), branches_(branches) {}

  at::Tensor forward(const at::Tensor& x, const TreeSlice& slice) {
    const auto mix = [&](const at::Tensor& packed) { return mix_tokens(packed, slice); };
    return forward_half(kMlpHalf, step_.layer, step_.context, forward_attention(step_.layer, step_.context, x, mix));
  }

 private:
  at::Tensor mix_tokens(const at::Tensor& packed, const TreeSlice& slice) {
    const LayerShape& shape = step_.layer.shape;
    if (shape.is_delta()) return mix_runs(packed, slice);
    if (!shape.has_output_gate) return mix_heads(packed, slice);
    const GatedHeads heads = split_gates(shape, packed);
    return mix_heads(heads.qkv, slice).mul_(heads.gate);
  }

  // Run after run, each from what is remembered where it branches off.
  at::Tensor mix_runs(const at::Tensor& packed, const TreeSlice& slice) {
    std::vector<at::Tensor> mixed;
    for (const TreeRun& run : slice.runs) {
      if (run.first_position != position_)
        state_ = run.first_position == 0 ? DeltaState{} : saved_.at(run.first_position);
      saved_.erase(saved_.upper_bound(run.first_position), saved_.end());
      position_ = run.first_position;
      for (int64_t row = 0; row < run.rows;) {
        int64_t count = 1;  // up to a row that another run goes on from
        while (row + count < run.rows && !branches_[static_cast<size_t>(rows_ + run.first_row + row + count - 1)])
          ++count;
        const at::Tensor part = packed.narrow(0, run.first_row + row, count).transpose(0, 1);
        mixed.push_back(mix_by_delta(step_.layer, positions_.rms_norm_eps, part, state_));
        row += count;
        position_ += count;
        if (branches_[static_cast<size_t>(rows_ + run.first_row + row - 1)]) saved_[position_] = state_;
      }
    }
    rows_ += packed.size(0);
    return at::cat(mixed, 1).transpose(0, 1);
  }

  // Every token attends to those on its path to the root.
  at::Tensor mix_heads(const at::Tensor& packed, const TreeSlice& slice) {
    const DecoderLayer& layer = step_.layer;
    const int64_t heads = layer.shape.num_attention_heads, kv = layer.shape.num_key_value_heads;
    at::Tensor qkv = with_values(layer.shape, packed).view({1, packed.size(0), heads + 2 * kv, layer.shape.head_dim});
    const at::Tensor position = at::tensor(slice.positions).to(packed.device());
    place_heads_(layer, positions_, at_positions(positions_.rotary_of(layer), position), qkv);
    qkv = qkv.squeeze(0);
    if (!path_.keys.defined()) {
      path_.keys = at::empty({longest_, kv, layer.shape.head_dim}, qkv.options());
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
  // Of a gated delta net: the rows of the tree that more than one row follows, those of the chunks before, what is
  // remembered at the end of the open sequence, and at its branching points, by their positions.
  const std::vector<bool>& branches_;
  int64_t rows_ = 0, position_ = 0;
  DeltaState state_;
  std::map<int64_t, DeltaState> saved_;
};

// Whether a run goes on from a row, by the row, that is not the one behind it.
std::vector<bool> branching_rows(const PrefixTree& tree) {
  std::vector<bool> branches(static_cast<size_t>(tree.rows()));
  std::vector<int64_t> path;  // rows of the open sequence
  for (const TreeRun& run : tree.runs()) {
    path.resize(static_cast<size_t>(run.first_position));
    if (!path.empty()) branches[static_cast<size_t>(path.back())] = true;
    for (int64_t row = 0; row < run.rows; ++row) path.push_back(run.first_row + row);
  }
  return branches;
}

}  // namespace

void run_tree(const LayerWalk& walk, const std::string& task, const PrefixTree& tree, ResidualStream& stream,
              const WalkSpan& span) {
  std::vector<int64_t> chunk_rows;
  for (const at::Tensor& chunk : stream.chunks) chunk_rows.push_back(chunk.size(0));
  const std::vector<TreeSlice> slices = slice_tree(tree, chunk_rows);
  const std::vector<bool> branches = branching_rows(tree);
  const LayerContext positions = make_position_context(walk.config(), tree.longest(), walk.options().device);
  const auto visit = [&](LayerStep& step) {
    TreeLayer layer(step, positions, tree, branches);
    auto slice = slices.begin();
    step.transform(stream, [&](const at::Tensor& x) { return layer.forward(x, *slice++); });
  };
  walk.run(task, stream.tokens(), visit, std::nullopt, span);
}

}  // namespace dynslice
