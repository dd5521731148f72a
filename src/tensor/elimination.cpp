#include "dynslice/tensor/elimination.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "aten.h"
#include "dynslice/tensor/kernels.h"
#include "dynslice/tensor/ridge_fit.h"

namespace dynslice {
namespace {

// Neurons that go in one block, as a share of all, and at most: larger blocks are fewer sweeps over the inverse,
// smaller ones less work inside.
constexpr int64_t kBlocks = 24, kLargestBlock = 256;
// Candidates for every neuron that goes.
constexpr int64_t kCandidates = 2;

// The greedy choice among some neurons, exact while no neuron outside becomes cheaper: removing one of them changes
// the inverse and the rows' products of the others.
class Candidates {
 public:
  // Both [m, m] fp64 contiguous: of the inverse, and W M Wᵀ.
  Candidates(at::Tensor inverse, at::Tensor products)
      : inverse_(std::move(inverse)), products_(std::move(products)), count_(inverse_.size(0)) {
    open_.assign(static_cast<size_t>(count_), true);
  }

  double cost(int64_t j) const { return at_(products_, j, j) / std::max(at_(inverse_, j, j), kTiny); }

  int64_t cheapest() const {
    int64_t best = -1;
    for (int64_t j = 0; j < count_; ++j) {
      if (open_[static_cast<size_t>(j)] && (best < 0 || cost(j) < cost(best))) best = j;
    }
    return best;
  }

  // W_j -= a_j W_i and H -= a H_i with a = H_i / H_ii.
  void remove(int64_t i) {
    const auto n = static_cast<size_t>(count_);
    const double pivot = std::max(at_(inverse_, i, i), kTiny), own = at_(products_, i, i);
    std::vector<double> share(n), row(n), product(n);
    for (int64_t j = 0; j < count_; ++j) {
      const auto k = static_cast<size_t>(j);
      row[k] = at_(inverse_, i, j);
      share[k] = row[k] / pivot;
      product[k] = at_(products_, i, j);
    }
    open_[static_cast<size_t>(i)] = false;
    auto* inverse = inverse_.mutable_data_ptr<double>();
    auto* products = products_.mutable_data_ptr<double>();
    for (size_t j = 0; j < n; ++j) {
      if (!open_[j]) continue;
      for (size_t k = 0; k < n; ++k) {
        inverse[j * n + k] -= share[j] * row[k];
        products[j * n + k] += share[j] * (own * share[k] - product[k]) - share[k] * product[j];
      }
    }
  }

 private:
  static constexpr double kTiny = std::numeric_limits<double>::min();

  double at_(const at::Tensor& matrix, int64_t i, int64_t j) const {
    return matrix.const_data_ptr<double>()[i * count_ + j];
  }

  at::Tensor inverse_, products_;
  int64_t count_;
  std::vector<bool> open_;
};

at::Tensor indices_of(const std::vector<int64_t>& neurons, const at::Device& device) {
  return at::tensor(neurons, at::TensorOptions().dtype(at::kLong)).to(device);
}

at::Tensor indices_where(const std::vector<bool>& flags, bool value) {
  std::vector<int64_t> indices;
  for (size_t j = 0; j < flags.size(); ++j) {
    if (flags[j] == value) indices.push_back(static_cast<int64_t>(j));
  }
  return at::tensor(indices, at::TensorOptions().dtype(at::kLong));
}

// S with G = S Sᵀ; G is symmetric and has no negative eigenvalue beyond rounding.
at::Tensor root_of(const at::Tensor& g) {
  const auto [values, vectors] = at::linalg_eigh(g.to(at::kDouble), "L");
  return (vectors * values.clamp_min(0).sqrt()).to(at::kFloat).contiguous();
}

}  // namespace

Elimination::Elimination(at::Tensor moment, const at::Tensor& weights, const at::Tensor& directions, double ridge,
                         const std::string& where)
    : where_(where),
      weights_(weights.to(at::kDouble, /*non_blocking=*/false, /*copy=*/true).contiguous()),
      left_(moment.size(0)) {
  weighed_ =
      directions.defined() ? kernels::matmul(weights.to(at::kFloat), root_of(directions)).to(at::kDouble) : weights_;
  gone_.assign(static_cast<size_t>(left_), false);
  const at::Tensor factor = ridge_factor(std::move(moment), ridge, where);
  inverse_ = at::cholesky_inverse(factor);
  if (!inverse_.is_contiguous()) inverse_ = inverse_.t();  // the same matrix, without a copy
}

void Elimination::reduce_to(int64_t count) {
  while (left_ > std::max<int64_t>(count, 1)) remove(cheapest(left_ - std::max<int64_t>(count, 1)));
}

void Elimination::keep_only(const at::Tensor& kept) {
  std::vector<bool> stays(gone_.size(), false);
  const at::Tensor names = kept.cpu();
  for (int64_t i = 0; i < names.numel(); ++i) stays[static_cast<size_t>(names[i].item<int64_t>())] = true;
  std::vector<int64_t> going;
  for (size_t j = 0; j < stays.size(); ++j) {
    if (!stays[j] && !gone_[j]) going.push_back(static_cast<int64_t>(j));
    if (going.size() == kLargestBlock || (j + 1 == stays.size() && !going.empty())) {
      remove(going);
      going.clear();
    }
  }
}

std::vector<int64_t> Elimination::cheapest(int64_t most) {
  const int64_t n = inverse_.size(0);
  const int64_t block = std::min(most, std::clamp<int64_t>(n / kBlocks, 1, kLargestBlock));
  const double never = std::numeric_limits<double>::infinity();
  at::Tensor costs = weighed_.square().sum(1) / inverse_.diagonal();
  costs.index_fill_(0, indices_where(gone_, true).to(costs.device()), never);
  const auto [ordered, order] = at::sort(costs, /*stable=*/true, 0, /*descending=*/false);
  const int64_t candidates = std::min(left_, kCandidates * block);
  const double outside = candidates < n ? ordered[candidates].item<double>() : never;
  const at::Tensor chosen = order.narrow(0, 0, candidates);
  const at::Tensor rows = weighed_.index_select(0, chosen);
  Candidates open(inverse_.index_select(0, chosen).index_select(1, chosen).cpu().contiguous(),
                  at::matmul(rows, rows.t()).cpu().contiguous());
  const at::Tensor names = chosen.cpu();
  std::vector<int64_t> removed;
  double loss = removals_.empty() ? 0 : removals_.back().loss;
  for (int64_t i = 0; i < block; ++i) {
    const int64_t best = open.cheapest();
    const double cost = open.cost(best);
    if (i > 0 && cost > outside) break;  // one that is no candidate has become the cheapest
    open.remove(best);
    removed.push_back(names[best].item<int64_t>());
    loss += std::max(cost, 0.0) / 2;
    removals_.push_back({removed.back(), loss});
  }
  return removed;
}

at::Tensor Elimination::factor_of_part(const at::Tensor& part) const {
  return cholesky_factor((part + part.t()) / 2, where_, "the inverse of the second moment");
}

double Elimination::cost(const std::vector<int64_t>& neurons) const {
  const at::Tensor indices = indices_of(neurons, inverse_.device());
  const at::Tensor factor = factor_of_part(inverse_.index_select(0, indices).index_select(1, indices));
  const at::Tensor scaled = at::linalg_solve_triangular(factor, weighed_.index_select(0, indices), /*upper=*/false);
  return scaled.square().sum().item<double>() / 2;
}

void Elimination::remove(const std::vector<int64_t>& neurons) {
  const at::Tensor indices = indices_of(neurons, inverse_.device());
  const at::Tensor across = inverse_.index_select(0, indices);
  const at::Tensor factor = factor_of_part(across.index_select(1, indices));
  const at::Tensor left = at::linalg_solve_triangular(factor, across, /*upper=*/false);
  const auto refit = [&](at::Tensor& rows) {
    rows.addmm_(left.t(), at::linalg_solve_triangular(factor, rows.index_select(0, indices), /*upper=*/false), 1, -1);
  };
  refit(weights_);
  if (!weighed_.is_same(weights_)) refit(weighed_);
  inverse_.addmm_(left.t(), left, 1, -1);
  for (const int64_t neuron : neurons) gone_[static_cast<size_t>(neuron)] = true;
  left_ -= static_cast<int64_t>(neurons.size());
}

at::Tensor Elimination::kept() const { return indices_where(gone_, false).to(inverse_.device()); }

at::Tensor Elimination::refitted() const { return weights_.index_select(0, kept()); }

at::Tensor Elimination::solve(const at::Tensor& right) const {
  // No part of the inverse is copied: what the neurons that are gone have in it meets zeros.
  const at::Tensor rows = kept();
  at::Tensor some = at::zeros(right.sizes(), weights_.options());
  some.index_copy_(0, rows, right.index_select(0, rows).to(at::kDouble));
  return at::matmul(inverse_, some).index_select(0, rows);
}

}  // namespace dynslice
