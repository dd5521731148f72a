// Token sequences that share their beginnings, as the answers to one question do, and the questions of a few-shot task:
// laid out so that a walk computes every shared token once, and no padding at all.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "dynslice/support/token_windows.h"

namespace dynslice {

// Consecutive rows of a tree that are consecutive tokens of a sequence, from its position `first_position` on.
struct TreeRun {
  int64_t first_row = 0;
  int64_t rows = 0;
  int64_t first_position = 0;
};

// A row is one token after all that precede it in its sequence. Rows are in depth-first order: what a row continues is
// what was open when the row before it ended, cut to a length and followed by new rows.
class PrefixTree {
 public:
  // Adds a sequence of at least one token, which shares rows with the one added before it as far as the two are alike:
  // sorted sequences share most. Returns the row of each of its tokens, until the next call.
  const std::vector<int64_t>& add(std::span<const int32_t> ids);

  // How many rows `ids` would add.
  [[nodiscard]] int64_t rows_to_add(std::span<const int32_t> ids) const;

  [[nodiscard]] const std::vector<int32_t>& ids() const { return ids_; }  // of the rows
  [[nodiscard]] const std::vector<TreeRun>& runs() const { return runs_; }
  [[nodiscard]] int64_t rows() const { return static_cast<int64_t>(ids_.size()); }
  [[nodiscard]] int64_t longest() const { return longest_; }  // of the sequences, in tokens

 private:
  std::vector<int32_t> ids_;
  std::vector<TreeRun> runs_;
  std::vector<int64_t> path_;  // rows of the sequence added last
  int64_t longest_ = 0;
};

// The tree's rows as windows of one token each, and their positions in the sequences.
[[nodiscard]] TokenWindows rows_as_windows(const PrefixTree& tree);
[[nodiscard]] std::vector<int64_t> positions_of_rows(const PrefixTree& tree);

}  // namespace dynslice
