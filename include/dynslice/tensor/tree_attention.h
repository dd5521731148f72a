// Attention among the rows of a prefix tree: a token sees the tokens before it in its own sequence, wherever they lie.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "dynslice/tensor/prefix_tree.h"

namespace dynslice {

// What attention must know of the rows of one chunk.
struct TreeSlice {
  std::vector<TreeRun> runs;        // rows counted from the chunk's first
  std::vector<int32_t> keys;        // of every run: what its last token sees, in order; see key_row
  std::vector<int64_t> first_keys;  // where a run's keys begin
  std::vector<int64_t> positions;   // of the rows
  int64_t kept = 0;                 // positions of the path that the chunk leaves as they are
  std::vector<int64_t> path_rows;   // rows of the chunk that follow them in the path
};

// A key is a row of the chunk (0 or more) or a position of the path (from -1 downwards).
[[nodiscard]] inline int32_t key_of_path(int64_t position) { return static_cast<int32_t>(-1 - position); }

// Cuts the tree's rows into chunks of these sizes.
[[nodiscard]] std::vector<TreeSlice> slice_tree(const PrefixTree& tree, const std::vector<int64_t>& chunk_rows);

// Keys (rotated) and values of the sequence that is open between two chunks, [positions, kv_heads, head_dim] each.
struct TreePath {
  at::Tensor keys, values;
};

namespace kernels {

// qkv [n, heads + 2 kv_heads, head_dim], contiguous, queries and keys rotated. A token sees the last `window` tokens,
// itself included (0: all); scores are capped where `cap` is not 0. → [n, heads * head_dim] in the same dtype. On the
// CPU in fp32 and bf16 one kernel, with fp32 arithmetic, whose results do not depend on how rows are cut into chunks;
// else LibTorch's, run by run.
[[nodiscard]] at::Tensor tree_attention(const at::Tensor& qkv, int64_t heads, int64_t kv_heads, int64_t window,
                                        const TreeSlice& slice, const TreePath& path, double cap = 0);

// The same of LibTorch's operators, whatever the device.
[[nodiscard]] at::Tensor composed_tree_attention(const at::Tensor& qkv, int64_t heads, int64_t kv_heads, int64_t window,
                                                 const TreeSlice& slice, const TreePath& path, double cap = 0);

}  // namespace kernels
}  // namespace dynslice
