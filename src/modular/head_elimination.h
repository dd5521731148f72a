// Which attention heads go, one after the other, and what that costs when the others' output rows are refitted: the
// optimal brain surgeon on blocks of columns.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "dynslice/plan/budget.h"
#include "dynslice/plan/slice_plan.h"
#include "dynslice/tensor/elimination.h"

namespace dynslice {

// Of one layer, in steps that leave all key-value heads with equally many query heads, as every runtime wants them: a
// key-value head goes with its queries, or one query head of every key-value head.
class HeadElimination {
 public:
  // `moment` is that of what attention mixes, the inputs of the output matrix, whose transpose `weights` is; the others
  // as in Elimination.
  HeadElimination(at::Tensor moment, const at::Tensor& weights, const at::Tensor& directions, double ridge,
                  const HeadCount& heads, int64_t head_dim, const std::string& where);

  HeadCount left() const;
  // The step that costs least for every head dimension that it removes of queries, keys, values and output together.
  // Returns its loss (Σ_t w_t e_tᵀ G e_t / 2 more). The last key-value head may go too.
  double step();
  // Steps of the two kinds, the cheapest of each, until as many are left.
  void reduce_to(const HeadCount& wanted);

  const Elimination& columns() const { return columns_; }
  // Rows of the queries and of the keys (or values) that stay, ascending int64.
  at::Tensor query_rows() const { return columns_.kept(); }
  at::Tensor key_rows() const;

 private:
  struct Step {
    std::vector<int64_t> columns;
    std::vector<int64_t> heads;  // query heads
    double loss = 0;
    bool takes_keys = false;  // their key-value head goes with them
  };
  Step without_group() const;
  Step without_heads() const;
  double take(const Step& step);
  std::vector<int64_t> columns_of(const std::vector<int64_t>& heads) const;

  Elimination columns_;
  const int64_t head_dim_;
  std::vector<std::vector<int64_t>> groups_;  // query heads that are left, of every key-value head of the model
  at::Device device_;
};

}  // namespace dynslice
