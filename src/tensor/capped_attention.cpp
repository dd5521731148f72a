#include "dynslice/tensor/capped_attention.h"

#include <c10/core/GradMode.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "aten.h"

namespace dynslice::kernels {
namespace {

// Scores of one block of queries: some of them per core still lie in its cache when they are read again.
constexpr int64_t kBlockScores = int64_t{1} << 20;

// What the queries at positions [first, first + rows) may not see of [begin, first + rows), -inf; additive.
at::Tensor mask_of(int64_t first, int64_t rows, int64_t begin, int64_t window, const at::TensorOptions& options) {
  const auto whole = options.dtype(at::kLong);
  const at::Tensor query = at::arange(first, first + rows, whole).view({rows, 1});
  const at::Tensor key = at::arange(begin, first + rows, whole).view({1, -1});
  at::Tensor hidden = key.gt(query);
  if (window > 0) hidden.logical_or_(key.le(query - window));
  return at::zeros(hidden.sizes(), options).masked_fill_(hidden, -std::numeric_limits<double>::infinity());
}

at::Tensor weights_of(const at::Tensor& scores, const at::Tensor& mask, double cap) {
  if (at::GradMode::is_enabled()) return at::softmax(scores.tanh() * cap + mask, -1);
  return at::softmax(scores.tanh_().mul_(cap).add_(mask), -1);
}

}  // namespace

at::Tensor capped_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, int64_t window, double cap) {
  const int64_t batch = q.size(0), heads = q.size(1), length = q.size(2), head_dim = q.size(3);
  const int64_t kv = k.size(1), group = heads / kv, before = k.size(2) - length;
  const at::ScalarType dtype = q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const double scale = 1 / (std::sqrt(static_cast<double>(head_dim)) * cap);
  const at::Tensor queries = (q.to(dtype) * scale).unflatten(1, {kv, group});  // heads of a group share their keys
  const at::Tensor keys = k.to(dtype), values = v.to(dtype);
  const int64_t step = std::clamp<int64_t>(kBlockScores / (batch * heads * k.size(2)), 1, length);
  std::vector<at::Tensor> blocks;
  for (int64_t row = 0; row < length; row += step) {
    const int64_t rows = std::min(step, length - row), first = before + row, end = first + rows;
    const int64_t begin = window > 0 ? std::max<int64_t>(0, first - window + 1) : 0;
    const auto seen = [&](const at::Tensor& all) { return all.narrow(2, begin, end - begin); };
    const at::Tensor block = queries.narrow(3, row, rows).reshape({batch, kv, group * rows, head_dim});
    const at::Tensor scores = at::matmul(block, seen(keys).transpose(2, 3)).unflatten(2, {group, rows});
    const at::Tensor weights = weights_of(scores, mask_of(first, rows, begin, window, queries.options()), cap);
    blocks.push_back(at::matmul(weights.flatten(2, 3), seen(values)).unflatten(2, {group, rows}));
  }
  return at::cat(blocks, 3).flatten(1, 2).to(q.scalar_type());
}

}  // namespace dynslice::kernels
