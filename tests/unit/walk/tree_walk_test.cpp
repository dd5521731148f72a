#include "dynslice/walk/tree_walk.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "dynslice/tensor/prefix_tree.h"
#include "dynslice/tensor/tree_attention.h"
#include "tiny_model.h"
#include "unit/support/temporary_folder.h"

namespace dynslice {
namespace {

using Sequences = std::vector<std::vector<int32_t>>;

// Sorted sequences with beginnings in common, some of them beginnings of others.
Sequences branching_sequences() {
  Sequences sequences{{5, 6, 7, 8, 9, 10, 11, 12},
                      {5, 6, 7, 8, 9, 10, 20, 21, 22},
                      {5, 6, 7, 8, 30, 31},
                      {5, 6, 7},
                      {5, 6, 7, 40},
                      {1, 2, 3},
                      {1},
                      {60, 59, 58, 57, 56}};
  std::sort(sequences.begin(), sequences.end());
  return sequences;
}

PrefixTree tree_of(const Sequences& sequences) {
  PrefixTree tree;
  for (const auto& sequence : sequences) tree.add(sequence);
  return tree;
}

TEST(PrefixTree, HasEverySharedTokenOnce) {
  PrefixTree tree;
  EXPECT_EQ(tree.add(std::vector<int32_t>{1, 2, 3}), (std::vector<int64_t>{0, 1, 2}));
  EXPECT_EQ(tree.rows_to_add(std::vector<int32_t>{1, 2, 4, 5}), 2);
  EXPECT_EQ(tree.add(std::vector<int32_t>{1, 2, 4, 5}), (std::vector<int64_t>{0, 1, 3, 4}));
  EXPECT_EQ(tree.add(std::vector<int32_t>{1, 2, 4, 5}), (std::vector<int64_t>{0, 1, 3, 4}));
  EXPECT_EQ(tree.add(std::vector<int32_t>{1, 2, 4}), (std::vector<int64_t>{0, 1, 3}));
  EXPECT_EQ(tree.add(std::vector<int32_t>{1, 6}), (std::vector<int64_t>{0, 5}));
  EXPECT_EQ(tree.ids(), (std::vector<int32_t>{1, 2, 3, 4, 5, 6}));
  EXPECT_EQ(tree.longest(), 4);
  ASSERT_EQ(tree.runs().size(), 3U);
  EXPECT_EQ(tree.runs()[1].first_row, 3);
  EXPECT_EQ(tree.runs()[1].rows, 2);
  EXPECT_EQ(tree.runs()[1].first_position, 2);
}

TEST(PrefixTree, CutIntoChunksSeesTheSameTokens) {
  const PrefixTree tree = tree_of(branching_sequences());
  // The tokens that every row sees, by rows of the tree, however the rows are cut.
  const auto seen_by_rows = [&](const std::vector<int64_t>& chunks) {
    std::vector<std::vector<int64_t>> seen;
    std::vector<int64_t> path;
    int64_t begin = 0;
    const std::vector<TreeSlice> slices = slice_tree(tree, chunks);
    for (size_t chunk = 0; chunk < slices.size(); begin += chunks[chunk++]) {
      const TreeSlice& slice = slices[chunk];
      for (size_t run = 0; run < slice.runs.size(); ++run) {
        std::vector<int64_t> rows;
        const int64_t length = slice.runs[run].first_position + slice.runs[run].rows;
        for (int64_t i = 0; i < length; ++i) {
          const int64_t key = slice.keys[static_cast<size_t>(slice.first_keys[run] + i)];
          rows.push_back(key < 0 ? path[static_cast<size_t>(-1 - key)] : begin + key);
        }
        for (int64_t row = slice.runs[run].rows - 1; row >= 0; --row) {
          seen.push_back({rows.begin(), rows.end() - row});
          EXPECT_EQ(slice.positions[static_cast<size_t>(static_cast<int64_t>(seen.size()) - 1 - begin)],
                    static_cast<int64_t>(seen.back().size()) - 1);
        }
      }
      path.resize(static_cast<size_t>(slice.kept));
      for (const int64_t row : slice.path_rows) path.push_back(begin + row);
    }
    return seen;
  };
  const auto whole = seen_by_rows({tree.rows()});
  EXPECT_EQ(whole.size(), static_cast<size_t>(tree.rows()));
  EXPECT_EQ(seen_by_rows({1, 2, 3, 4, 5, tree.rows() - 15}), whole);
  EXPECT_EQ(seen_by_rows(std::vector<int64_t>(static_cast<size_t>(tree.rows()), 1)), whole);
}

// Largest difference of the kernel's result from that of LibTorch's operators, in chunks of these sizes.
double difference_from_composed(const PrefixTree& tree, const std::vector<int64_t>& chunks, at::ScalarType dtype,
                                int64_t window, int64_t head_dim, double cap = 0) {
  constexpr int64_t kHeads = 6, kKeyHeads = 2;
  at::manual_seed(3);
  const at::Tensor all = at::randn({tree.rows(), kHeads + 2 * kKeyHeads, head_dim}).to(dtype);
  TreePath path{at::zeros({tree.longest(), kKeyHeads, head_dim}, all.options()),
                at::zeros({tree.longest(), kKeyHeads, head_dim}, all.options())};
  double largest = 0;
  int64_t begin = 0;
  for (const TreeSlice& slice : slice_tree(tree, chunks)) {
    const int64_t rows = static_cast<int64_t>(slice.positions.size());
    const at::Tensor qkv = all.narrow(0, begin, rows);
    const at::Tensor found = kernels::tree_attention(qkv, kHeads, kKeyHeads, window, slice, path, cap);
    const at::Tensor expected =
        kernels::composed_tree_attention(qkv.to(at::kDouble), kHeads, kKeyHeads, window, slice,
                                         {path.keys.to(at::kDouble), path.values.to(at::kDouble)}, cap);
    largest = std::max(largest, (found.to(at::kDouble) - expected).abs().max().item<double>());
    if (!slice.path_rows.empty()) {
      const at::Tensor open = qkv.index_select(0, at::tensor(slice.path_rows));
      path.keys.narrow(0, slice.kept, open.size(0)).copy_(open.narrow(1, kHeads, kKeyHeads));
      path.values.narrow(0, slice.kept, open.size(0)).copy_(open.narrow(1, kHeads + kKeyHeads, kKeyHeads));
    }
    begin += rows;
  }
  return largest;
}

TEST(TreeAttention, IsLibTorchsOnTheTokensOfEverySequence) {
  const PrefixTree tree = tree_of(branching_sequences());
  for (const int64_t head_dim : {8, 64, 80}) {
    for (const int64_t window : {0, 3}) {
      EXPECT_LT(difference_from_composed(tree, {tree.rows()}, at::kFloat, window, head_dim), 1e-5);
      EXPECT_LT(difference_from_composed(tree, {4, 5, tree.rows() - 9}, at::kFloat, window, head_dim), 1e-5);
      EXPECT_LT(difference_from_composed(tree, {4, 5, tree.rows() - 9}, at::kBFloat16, window, head_dim),
                0.02);  // 8 bits
    }
  }
}

TEST(TreeAttention, ServesRunsLongerThanATask) {
  Sequences sequences;
  for (int32_t end = 0; end < 3; ++end) {
    std::vector<int32_t> ids(150 + 40 * static_cast<size_t>(end), 7);
    ids[60] = end;
    sequences.push_back(ids);
  }
  const PrefixTree tree = tree_of(sequences);
  EXPECT_LT(difference_from_composed(tree, {100, 100, tree.rows() - 200}, at::kFloat, 0, 16), 1e-5);
  EXPECT_LT(difference_from_composed(tree, {100, 100, tree.rows() - 200}, at::kFloat, 33, 16), 1e-5);
  EXPECT_LT(difference_from_composed(tree, {100, 100, tree.rows() - 200}, at::kFloat, 33, 16, 0.7), 1e-5);
}

TEST(TreeWalk, GivesEverySequenceItsOwnStream) {
  ModelConfig sliding = testing::tiny_config({.qkv_bias = true, .head_norms = true});
  sliding.sliding_window = 4;
  for (const ModelConfig& config :
       {testing::tiny_config({.qkv_bias = true}), sliding, testing::tiny_config({.gemma = true}),
        testing::tiny_config({.gemma = true, .caps = true}), testing::tiny_config({.olmo = true}),
        testing::tiny_config({.gemma4 = true}), testing::tiny_config({.granite = true}),
        testing::tiny_config({.opt = true}), testing::tiny_config({.delta = true})}) {
    const testing::MemoryCheckpoint model = testing::random_model(config);
    const Sequences sequences = branching_sequences();
    PrefixTree tree;
    std::vector<std::vector<int64_t>> rows;
    for (const auto& sequence : sequences) rows.push_back(tree.add(sequence));
    for (const int64_t chunk : {2048, 5, 1}) {
      const LayerWalk walk(model, {.chunk_tokens = chunk}, 1, no_progress());
      ResidualStream stream = walk.embed(rows_as_windows(tree), positions_of_rows(tree));
      run_tree(walk, "test", tree, stream);
      const at::Tensor found = stream.gather().squeeze(1);
      for (size_t i = 0; i < sequences.size(); ++i) {
        const auto length = static_cast<int64_t>(sequences[i].size());
        const LayerWalk alone(model, {}, length, no_progress());
        ResidualStream expected = alone.embed({sequences[i], 1, length});
        run_dense(alone, "test", expected);
        const at::Tensor of_sequence = found.index_select(0, at::tensor(rows[i]));
        EXPECT_TRUE(at::allclose(of_sequence, expected.gather()[0], 1e-4, 1e-4)) << "sequence " << i;
      }
    }
  }
}

TEST(TreeWalk, IsTheSameWithTheStreamInTheScratchFile) {
  const testing::MemoryCheckpoint model = testing::tiny_model();
  const PrefixTree tree = tree_of(branching_sequences());
  const auto walked = [&](std::shared_ptr<ActivationStore> store) {
    const LayerWalk walk(model, {.chunk_tokens = 6, .activations = std::move(store)}, 1, no_progress());
    ResidualStream stream = walk.embed(rows_as_windows(tree));
    run_tree(walk, "test", tree, stream);
    return stream.gather();
  };
  const testing::TemporaryFolder folder;
  const auto store = std::make_shared<ActivationStore>(0, folder.path());
  EXPECT_TRUE(at::equal(walked(store), walked(nullptr)));
  EXPECT_GT(store->scratch_file_bytes(), 0U);
}

}  // namespace
}  // namespace dynslice
