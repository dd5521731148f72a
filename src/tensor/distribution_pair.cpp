#include "dynslice/tensor/distribution_pair.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>

#include "aten.h"
#include "tensor/fast_exp.h"

namespace dynslice {
namespace {

// What the state has of every row. Sums are of exp(logit - the largest logit so far); `kCross` sums the same of the
// reference times (reference's logit - model's logit). Tops are columns.
enum : int64_t { kMax, kSum, kTop, kReferenceMax, kReferenceSum, kReferenceTop, kCross, kColumns };

struct RowPart {
  double max = 0, sum = 0, top = 0;
};

float largest(const float* values, int64_t count) {
  float found = values[0];
#pragma omp simd reduction(max : found)
  for (int64_t i = 0; i < count; ++i) found = std::max(found, values[i]);
  return found;
}

int64_t place_of(const float* values, int64_t count, float wanted) {
  return std::find(values, values + count, wanted) - values;
}

float exponentials(const float* values, int64_t count, float max) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < count; ++i) sum += kernels::fast_exp(values[i] - max);
  return sum;
}

float crossed_exponentials(const float* reference, const float* values, int64_t count, float max) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < count; ++i) sum += kernels::fast_exp(reference[i] - max) * (reference[i] - values[i]);
  return sum;
}

// Joins what a block gives with what the state has: both sums become relative to the larger maximum. The state's
// factor and the block's.
std::pair<double, double> join_max(double* state, double max, double top, int64_t index) {
  const double joined = std::max(state[index], max);
  const double before = std::exp(state[index] - joined), now = std::exp(max - joined);
  if (max > state[index]) state[index + kTop - kMax] = top;
  state[index] = joined;
  return {before, now};
}

void add_row(double* state, const float* values, const float* reference, int64_t count, int64_t begin) {
  const float max = largest(values, count), reference_max = largest(reference, count);
  const auto top_of = [&](const float* row, float most, int64_t index) {
    return most > state[index] ? static_cast<double>(begin + place_of(row, count, most)) : 0;
  };
  const auto [before, now] = join_max(state, max, top_of(values, max, kMax), kMax);
  state[kSum] = state[kSum] * before + exponentials(values, count, max) * now;
  const auto [reference_before, reference_now] =
      join_max(state, reference_max, top_of(reference, reference_max, kReferenceMax), kReferenceMax);
  state[kReferenceSum] =
      state[kReferenceSum] * reference_before + exponentials(reference, count, reference_max) * reference_now;
  state[kCross] =
      state[kCross] * reference_before + crossed_exponentials(reference, values, count, reference_max) * reference_now;
}

void add_on_cpu(const at::Tensor& state, const at::Tensor& logits, const at::Tensor& reference, int64_t begin) {
  const at::Tensor values = logits.contiguous(), others = reference.contiguous();
  const int64_t count = values.size(1);
  const float* first = values.const_data_ptr<float>();
  const float* second = others.const_data_ptr<float>();
  double* rows = state.mutable_data_ptr<double>();
  at::parallel_for(0, values.size(0), 4, [&](int64_t from, int64_t to) {
    for (int64_t row = from; row < to; ++row)
      add_row(rows + row * kColumns, first + row * count, second + row * count, count, begin);
  });
}

// The same of ATen's operators, on any device and of any dtype.
void add_with_operators(const at::Tensor& state, const at::Tensor& logits, const at::Tensor& reference, int64_t begin) {
  const auto join = [&](const at::Tensor& values, int64_t index) {
    const auto [most, place] = values.max(1);
    const at::Tensor max = most.to(at::kDouble), kept = state.select(1, index);
    const at::Tensor joined = at::maximum(kept, max);
    state.select(1, index + kTop - kMax)
        .copy_(at::where(max.gt(kept), (place + begin).to(at::kDouble), state.select(1, index + kTop - kMax)));
    const at::Tensor before = at::exp(kept - joined);
    kept.copy_(joined);
    return std::pair{before, at::exp(values.to(at::kDouble) - joined.unsqueeze(1))};
  };
  const auto [before, exponents] = join(logits, kMax);
  state.select(1, kSum).mul_(before).add_(exponents.sum(1));
  const auto [reference_before, reference_exponents] = join(reference, kReferenceMax);
  state.select(1, kReferenceSum).mul_(reference_before).add_(reference_exponents.sum(1));
  const at::Tensor differences = reference.to(at::kDouble) - logits.to(at::kDouble);
  state.select(1, kCross).mul_(reference_before).add_((reference_exponents * differences).sum(1));
}

}  // namespace

DistributionPairs::DistributionPairs(int64_t rows, at::Device device)
    : state_(at::zeros({rows, kColumns}, at::TensorOptions().dtype(at::kDouble).device(device))) {
  column(kMax).fill_(-INFINITY);
  column(kReferenceMax).fill_(-INFINITY);
}

void DistributionPairs::add(int64_t first, int64_t begin, const at::Tensor& logits, const at::Tensor& reference) {
  const at::Tensor state = state_.narrow(0, first, logits.size(0));
  if (state.device().is_cpu() && logits.scalar_type() == at::kFloat && reference.scalar_type() == at::kFloat) {
    add_on_cpu(state, logits, reference, begin);
  } else {
    add_with_operators(state, logits, reference, begin);
  }
}

at::Tensor DistributionPairs::log_sums() const { return column(kMax) + column(kSum).log(); }

at::Tensor DistributionPairs::reference_log_sums() const { return column(kReferenceMax) + column(kReferenceSum).log(); }

at::Tensor DistributionPairs::divergences() const {
  // Σ p (r - x) - log Σ exp(r) + log Σ exp(x) for the logits r of the reference, p their softmax, and x of the model.
  return column(kCross) / column(kReferenceSum) - reference_log_sums() + log_sums();
}

at::Tensor DistributionPairs::same_top() const { return column(kTop).eq(column(kReferenceTop)); }

}  // namespace dynslice
