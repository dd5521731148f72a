#include "modular/head_elimination.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "aten.h"

namespace dynslice {

HeadElimination::HeadElimination(at::Tensor moment, const at::Tensor& weights, const at::Tensor& directions,
                                 double ridge, const HeadCount& heads, int64_t head_dim, const std::string& where)
    : columns_(std::move(moment), weights, directions, ridge, where), head_dim_(head_dim), device_(weights.device()) {
  const int64_t each = heads.heads / heads.kv_heads;
  for (int64_t group = 0; group < heads.kv_heads; ++group) {
    groups_.emplace_back(static_cast<size_t>(each));
    std::iota(groups_.back().begin(), groups_.back().end(), group * each);
  }
}

HeadCount HeadElimination::left() const {
  HeadCount count;
  for (const std::vector<int64_t>& group : groups_) {
    count.heads += static_cast<int64_t>(group.size());
    count.kv_heads += group.empty() ? 0 : 1;
  }
  return count;
}

std::vector<int64_t> HeadElimination::columns_of(const std::vector<int64_t>& heads) const {
  std::vector<int64_t> columns;
  for (const int64_t head : heads) {
    for (int64_t i = 0; i < head_dim_; ++i) columns.push_back(head * head_dim_ + i);
  }
  return columns;
}

HeadElimination::Step HeadElimination::without_group() const {
  Step best;
  best.loss = std::numeric_limits<double>::infinity();
  for (const std::vector<int64_t>& group : groups_) {
    if (group.empty()) continue;
    std::vector<int64_t> columns = columns_of(group);
    const double loss = columns_.cost(columns);
    if (loss < best.loss) best = {std::move(columns), group, loss, /*takes_keys=*/true};
  }
  return best;
}

HeadElimination::Step HeadElimination::without_heads() const {
  Step step;
  for (const std::vector<int64_t>& group : groups_) {
    if (group.empty()) continue;
    double least = std::numeric_limits<double>::infinity();
    int64_t cheapest = group.front();
    for (const int64_t head : group) {
      const double loss = columns_.cost(columns_of({head}));
      if (loss >= least) continue;
      least = loss;
      cheapest = head;
    }
    step.heads.push_back(cheapest);
  }
  step.columns = columns_of(step.heads);
  step.loss = columns_.cost(step.columns);
  return step;
}

double HeadElimination::take(const Step& step) {
  columns_.remove(step.columns);
  for (std::vector<int64_t>& group : groups_) {
    std::erase_if(group, [&](int64_t head) { return std::ranges::find(step.heads, head) != step.heads.end(); });
  }
  return step.loss;
}

double HeadElimination::step() {
  const HeadCount now = left();
  const Step group = without_group();
  if (now.heads == now.kv_heads) return take(group);  // every key-value head has one query left
  const Step heads = without_heads();
  const auto price = [](const Step& step) {
    const size_t matrices = 2 * step.heads.size() + (step.takes_keys ? 2 : 0);
    return step.loss / static_cast<double>(matrices);
  };
  return take(price(group) <= price(heads) ? group : heads);
}

void HeadElimination::reduce_to(const HeadCount& wanted) {
  while (left().kv_heads > wanted.kv_heads) take(without_group());
  while (left().heads > wanted.heads) take(without_heads());
}

at::Tensor HeadElimination::key_rows() const {
  std::vector<int64_t> stay;
  for (size_t group = 0; group < groups_.size(); ++group) {
    if (!groups_[group].empty()) stay.push_back(static_cast<int64_t>(group));
  }
  return at::tensor(columns_of(stay), at::TensorOptions().dtype(at::kLong)).to(device_);
}

}  // namespace dynslice
