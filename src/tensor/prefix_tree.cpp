#include "dynslice/tensor/prefix_tree.h"

#include <algorithm>

#include "dynslice/tensor/tree_attention.h"

namespace dynslice {
namespace {

// The open sequence, kept up to date run by run.
class OpenPath {
 public:
  // Row of every position.
  const std::vector<int64_t>& rows() const { return rows_; }

  void append(const TreeRun& run) {
    rows_.resize(static_cast<size_t>(run.first_position));
    for (int64_t row = 0; row < run.rows; ++row) rows_.push_back(run.first_row + row);
  }

 private:
  std::vector<int64_t> rows_;
};

// The part of a run that lies in rows [begin, end).
TreeRun part_of(const TreeRun& run, int64_t begin, int64_t end) {
  const int64_t first = std::max(run.first_row, begin), last = std::min(run.first_row + run.rows, end);
  return {first, last - first, run.first_position + first - run.first_row};
}

// Adds a run to the slice of the chunk that begins with row `begin`; `path` ends with the run.
void add_run(TreeSlice& slice, const TreeRun& run, int64_t begin, const std::vector<int64_t>& path) {
  slice.first_keys.push_back(static_cast<int64_t>(slice.keys.size()));
  slice.runs.push_back({run.first_row - begin, run.rows, run.first_position});
  for (size_t position = 0; position < path.size(); ++position) {
    const bool is_inside = path[position] >= begin;
    slice.keys.push_back(is_inside ? static_cast<int32_t>(path[position] - begin)
                                   : key_of_path(static_cast<int64_t>(position)));
  }
  for (int64_t row = 0; row < run.rows; ++row) slice.positions.push_back(run.first_position + row);
}

void end_slice(TreeSlice& slice, int64_t begin, const std::vector<int64_t>& path) {
  const auto first_new = std::find_if(path.begin(), path.end(), [&](int64_t row) { return row >= begin; });
  slice.kept = first_new - path.begin();
  for (auto row = first_new; row != path.end(); ++row) slice.path_rows.push_back(*row - begin);
}

}  // namespace

int64_t PrefixTree::rows_to_add(std::span<const int32_t> ids) const {
  const size_t most = std::min(path_.size(), ids.size());
  size_t shared = 0;
  while (shared < most && ids_[static_cast<size_t>(path_[shared])] == ids[shared]) ++shared;
  return static_cast<int64_t>(ids.size() - shared);
}

const std::vector<int64_t>& PrefixTree::add(std::span<const int32_t> ids) {
  const int64_t added = rows_to_add(ids), length = static_cast<int64_t>(ids.size());
  path_.resize(static_cast<size_t>(length - added));
  if (added > 0) runs_.push_back({rows(), added, length - added});
  for (int64_t position = length - added; position < length; ++position) {
    path_.push_back(rows());
    ids_.push_back(ids[static_cast<size_t>(position)]);
  }
  longest_ = std::max(longest_, length);
  return path_;
}

TokenWindows rows_as_windows(const PrefixTree& tree) { return {tree.ids(), tree.rows(), 1}; }

std::vector<int64_t> positions_of_rows(const PrefixTree& tree) {
  std::vector<int64_t> positions;
  for (const TreeRun& run : tree.runs()) {
    for (int64_t row = 0; row < run.rows; ++row) positions.push_back(run.first_position + row);
  }
  return positions;
}

std::vector<TreeSlice> slice_tree(const PrefixTree& tree, const std::vector<int64_t>& chunk_rows) {
  std::vector<TreeSlice> slices;
  OpenPath path;
  auto run = tree.runs().begin();
  int64_t begin = 0;
  for (const int64_t rows : chunk_rows) {
    TreeSlice slice;
    const int64_t end = begin + rows;
    while (run != tree.runs().end() && run->first_row < end) {
      const TreeRun part = part_of(*run, begin, end);
      path.append(part);
      add_run(slice, part, begin, path.rows());
      if (run->first_row + run->rows > end) break;
      ++run;
    }
    end_slice(slice, begin, path.rows());
    slices.push_back(std::move(slice));
    begin = end;
  }
  return slices;
}

}  // namespace dynslice
