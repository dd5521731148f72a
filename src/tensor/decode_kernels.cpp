#include "dynslice/tensor/decode_kernels.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <vector>

#include "aten.h"
#include "dynslice/tensor/multiversion.h"
#include "tensor/fast_exp.h"

namespace dynslice::kernels {
namespace {

// Keys, and values, that are worked on side by side.
constexpr int64_t kRowGroup = 4;
// Weights a task reads at least: below this a thread's wake-up costs more than it saves.
constexpr int64_t kLeastPerTask = 32768;

// out[r] = rows[r] · x for four rows that lie `width` apart.
DYNSLICE_IN_LOOPS void dot_four(const float* rows, const float* x, int64_t width, float* out) {
  float a = 0, b = 0, c = 0, d = 0;
#pragma omp simd reduction(+ : a, b, c, d)
  for (int64_t i = 0; i < width; ++i) {
    a += rows[i] * x[i];
    b += rows[width + i] * x[i];
    c += rows[2 * width + i] * x[i];
    d += rows[3 * width + i] * x[i];
  }
  out[0] = a;
  out[1] = b;
  out[2] = c;
  out[3] = d;
}

using Lanes [[gnu::vector_size(64)]] = float;
using Half [[gnu::vector_size(32)]] = float;
using Quarter [[gnu::vector_size(16)]] = float;
constexpr int64_t kLanes = 16;

template <typename Vector>
[[gnu::always_inline]] inline void load_lanes(const float* from, Vector& to) {
  std::memcpy(&to, from, sizeof to);
}
[[gnu::always_inline]] inline void load_lanes(const uint16_t* from, Lanes& to) {
  using Narrow [[gnu::vector_size(32)]] = uint16_t;
  using Wide [[gnu::vector_size(64)]] = uint32_t;
  Narrow bits;
  std::memcpy(&bits, from, sizeof bits);
  to = reinterpret_cast<Lanes>(__builtin_convertvector(bits, Wide) << 16);
}
[[gnu::always_inline]] inline void load_lanes(const uint16_t* from, Half& to) {
  using Narrow [[gnu::vector_size(16)]] = uint16_t;
  using Wide [[gnu::vector_size(32)]] = uint32_t;
  Narrow bits;
  std::memcpy(&bits, from, sizeof bits);
  to = reinterpret_cast<Half>(__builtin_convertvector(bits, Wide) << 16);
}

[[gnu::always_inline]] inline void add_product(const auto* row, const float* x, auto& sum) {
  std::remove_reference_t<decltype(sum)> a, b;
  load_lanes(row, a);
  load_lanes(x, b);
  sum += a * b;
}

// Four sums side by side: with one, every addition would wait for the one before it.
template <typename Weight>
[[gnu::always_inline]] inline float dot(const Weight* row, const float* x, int64_t width) {
  Lanes sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * kLanes <= width; i += 4 * kLanes) {
#pragma GCC unroll 4
    for (int64_t k = 0; k < 4; ++k) add_product(row + i + k * kLanes, x + i + k * kLanes, sums[k]);
  }
  for (; i + kLanes <= width; i += kLanes) add_product(row + i, x + i, sums[0]);
  const Lanes all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  Half half[2];
  std::memcpy(half, &all, sizeof half);
  half[0] += half[1];
  if (i + kLanes / 2 <= width) {
    add_product(row + i, x + i, half[0]);
    i += kLanes / 2;
  }
  Quarter quarter[2];
  std::memcpy(quarter, half, sizeof quarter);
  quarter[0] += quarter[1];
  float sum = (quarter[0][0] + quarter[0][1]) + (quarter[0][2] + quarter[0][3]);
  for (; i < width; ++i) sum += load(row[i]) * x[i];
  return sum;
}

// Rows [begin, end) of the weight times every row of x: y[m, row], or added to it; y [rows_of_x, out]. One row after
// the other: memory is read about twice as fast in one stream as in several side by side.
template <typename Weight>
[[gnu::always_inline]] inline void multiply_rows(const Weight* weight, const float* x, float* y, int64_t rows_of_x,
                                                 int64_t width, int64_t out, int64_t begin, int64_t end, bool adds) {
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t m = 0; m < rows_of_x; ++m) {
      float& target = y[m * out + row];
      target = dot(weight + row * width, x + m * width, width) + (adds ? target : 0.0F);
    }
  }
}

DYNSLICE_MULTIVERSION
void multiply_rows_fp32(const float* weight, const float* x, float* y, int64_t rows_of_x, int64_t width, int64_t out,
                        int64_t begin, int64_t end, bool adds) {
  multiply_rows(weight, x, y, rows_of_x, width, out, begin, end, adds);
}

DYNSLICE_MULTIVERSION
void multiply_rows_bf16(const uint16_t* weight, const float* x, float* y, int64_t rows_of_x, int64_t width, int64_t out,
                        int64_t begin, int64_t end, bool adds) {
  multiply_rows(weight, x, y, rows_of_x, width, out, begin, end, adds);
}

// y[m, i] -= Σ_r factors[m, r] weight[r, i] for entries [begin, end) of y; weight [rank, width], y [rows_of_x, out].
template <typename Weight>
[[gnu::always_inline]] inline void subtract_columns(const Weight* weight, const float* factors, float* y,
                                                    int64_t rows_of_x, int64_t rank, int64_t width, int64_t out,
                                                    int64_t begin, int64_t end) {
  for (int64_t m = 0; m < rows_of_x; ++m) {
    float* target = y + m * out;
    const float* factor = factors + m * rank;
    int64_t r = 0;
    for (; r + kRowGroup <= rank; r += kRowGroup) {
      const Weight* row = weight + r * width;
      const float a = factor[r], b = factor[r + 1], c = factor[r + 2], d = factor[r + 3];
#pragma omp simd
      for (int64_t i = begin; i < end; ++i) {
        target[i] -= (a * load(row[i]) + b * load(row[width + i])) +
                     (c * load(row[2 * width + i]) + d * load(row[3 * width + i]));
      }
    }
    for (; r < rank; ++r) {
#pragma omp simd
      for (int64_t i = begin; i < end; ++i) target[i] -= factor[r] * load(weight[r * width + i]);
    }
  }
}

DYNSLICE_MULTIVERSION
void subtract_columns_fp32(const float* weight, const float* factors, float* y, int64_t rows_of_x, int64_t rank,
                           int64_t width, int64_t out, int64_t begin, int64_t end) {
  subtract_columns(weight, factors, y, rows_of_x, rank, width, out, begin, end);
}

DYNSLICE_MULTIVERSION
void subtract_columns_bf16(const uint16_t* weight, const float* factors, float* y, int64_t rows_of_x, int64_t rank,
                           int64_t width, int64_t out, int64_t begin, int64_t end) {
  subtract_columns(weight, factors, y, rows_of_x, rank, width, out, begin, end);
}

at::Tensor as_rows(const at::Tensor& x) { return x.to(at::kFloat).contiguous(); }

// Entries [begin, end) of all rows of a sum; the tensors of the sum are fp32 and contiguous, but for the weights.
void compute_entries(const FewRowsSum& sum, float* y, int64_t begin, int64_t end) {
  const int64_t out = sum.weight.size(0), rows_of_x = sum.x.numel() / sum.weight.size(1);
  const auto multiply = [&](const at::Tensor& x, const at::Tensor& weight, bool adds) {
    const int64_t width = weight.size(1), last = std::min(end, weight.size(0));
    if (weight.scalar_type() == at::kFloat) {
      multiply_rows_fp32(weight.const_data_ptr<float>(), x.const_data_ptr<float>(), y, rows_of_x, width, out, begin,
                         last, adds);
    } else {
      multiply_rows_bf16(static_cast<const uint16_t*>(weight.const_data_ptr()), x.const_data_ptr<float>(), y, rows_of_x,
                         width, out, begin, last, adds);
    }
  };
  const auto add = [&](const at::Tensor& values, int64_t stride) {
    const float* from = values.const_data_ptr<float>();
    for (int64_t m = 0; m < rows_of_x; ++m) {
      for (int64_t i = begin; i < std::min(end, values.size(-1)); ++i) y[m * out + i] += from[m * stride + i];
    }
  };
  multiply(sum.x, sum.weight, false);
  if (sum.more_weight.defined()) multiply(sum.more_x, sum.more_weight, true);
  if (sum.less_weight.defined()) {
    const int64_t rank = sum.less_weight.size(0), width = sum.less_weight.size(1), last = std::min(end, width);
    const float* factors = sum.less_x.const_data_ptr<float>();
    if (sum.less_weight.scalar_type() == at::kFloat) {
      subtract_columns_fp32(sum.less_weight.const_data_ptr<float>(), factors, y, rows_of_x, rank, width, out, begin,
                            last);
    } else {
      subtract_columns_bf16(static_cast<const uint16_t*>(sum.less_weight.const_data_ptr()), factors, y, rows_of_x, rank,
                            width, out, begin, last);
    }
  }
  if (sum.bias.defined()) add(sum.bias, 0);
  if (sum.passed.defined()) add(sum.passed, sum.passed.size(-1));
}

// One head: out [head_dim] = softmax(scale * keys q) values over `count` positions, the scores capped where `cap` is
// not 0; `scores` has room for them.
DYNSLICE_MULTIVERSION
void attend_head(const float* q, const float* keys, const float* values, float* out, float* scores, int64_t count,
                 int64_t head_dim, float scale, float cap) {
  int64_t key = 0;  // keys are short: four of them share the loads of q, and still lie in one stretch of memory
  for (; key + kRowGroup <= count; key += kRowGroup) dot_four(keys + key * head_dim, q, head_dim, scores + key);
  for (; key < count; ++key) scores[key] = dot(keys + key * head_dim, q, head_dim);
  if (cap != 0) {
#pragma omp simd
    for (int64_t t = 0; t < count; ++t) scores[t] = capped(scores[t] * scale, cap);
    scale = 1;
  }
  float top = scores[0];
#pragma omp simd reduction(max : top)
  for (int64_t t = 0; t < count; ++t) top = std::max(top, scores[t]);
  float total = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t t = 0; t < count; ++t) {
    scores[t] = fast_exp((scores[t] - top) * scale);
    total += scores[t];
  }
  std::fill(out, out + head_dim, 0.0F);
  int64_t t = 0;
  for (; t + kRowGroup <= count; t += kRowGroup) {
    const float* row = values + t * head_dim;
    const float a = scores[t], b = scores[t + 1], c = scores[t + 2], d = scores[t + 3];
#pragma omp simd
    for (int64_t i = 0; i < head_dim; ++i) {
      out[i] += a * row[i] + b * row[head_dim + i] + c * row[2 * head_dim + i] + d * row[3 * head_dim + i];
    }
  }
  for (; t < count; ++t) {
#pragma omp simd
    for (int64_t i = 0; i < head_dim; ++i) out[i] += scores[t] * values[t * head_dim + i];
  }
  const float share = 1.0F / total;
#pragma omp simd
  for (int64_t i = 0; i < head_dim; ++i) out[i] *= share;
}

}  // namespace

bool few_rows_apply(const at::Tensor& x, const at::Tensor& weight) {
  const bool known = weight.scalar_type() == at::kFloat || weight.scalar_type() == at::kBFloat16;
  return known && weight.device().is_cpu() && weight.is_contiguous() && x.numel() <= kFewRows * x.size(-1) &&
         x.numel() > 0;
}

std::vector<at::Tensor> sums_of_few_rows(std::vector<FewRowsSum> sums) {
  std::vector<at::Tensor> results;
  std::vector<int64_t> starts = {0};  // of every sum's entries, one after the other
  int64_t widest = 1;
  for (FewRowsSum& sum : sums) {
    auto sizes = sum.x.sizes().vec();
    sizes.back() = sum.weight.size(0);
    for (at::Tensor* tensor : {&sum.x, &sum.more_x, &sum.less_x, &sum.passed, &sum.bias}) {
      if (tensor->defined()) *tensor = as_rows(*tensor);
    }
    results.push_back(at::empty(sizes, sum.x.options()));
    starts.push_back(starts.back() + sum.weight.size(0));
    widest = std::max(widest, sum.weight.size(1) + (sum.more_weight.defined() ? sum.more_weight.size(1) : 0) +
                                  (sum.less_weight.defined() ? sum.less_weight.size(0) : 0));
  }
  at::parallel_for(0, starts.back(), std::max<int64_t>(1, kLeastPerTask / widest), [&](int64_t begin, int64_t end) {
    for (size_t i = 0; i < sums.size(); ++i) {
      const int64_t first = std::max(begin, starts[i]), last = std::min(end, starts[i + 1]);
      if (first >= last) continue;
      compute_entries(sums[i], results[i].mutable_data_ptr<float>(), first - starts[i], last - starts[i]);
    }
  });
  return results;
}

at::Tensor linear_few_rows(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  return sums_of_few_rows({{x, weight, bias}}).front();
}

at::Tensor attend_one(const at::Tensor& q, const at::Tensor& keys, const at::Tensor& values, int64_t begin, int64_t end,
                      double cap) {
  const int64_t batch = q.size(0), heads = q.size(1), head_dim = q.size(3);
  const int64_t kv_heads = keys.size(1), capacity = keys.size(2), count = end - begin;
  const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_dim)));
  const at::Tensor query = q.contiguous();
  at::Tensor out = at::empty({batch, 1, heads * head_dim}, query.options());
  const float* queries = query.const_data_ptr<float>();
  const float* cached_keys = keys.const_data_ptr<float>();
  const float* cached_values = values.const_data_ptr<float>();
  float* target = out.mutable_data_ptr<float>();
  const int64_t grain = std::max<int64_t>(1, kLeastPerTask / std::max<int64_t>(1, 2 * count * head_dim));
  at::parallel_for(0, batch * heads, grain, [&](int64_t first, int64_t last) {
    std::vector<float> scores(static_cast<size_t>(count));
    for (int64_t head = first; head < last; ++head) {
      const int64_t kv = head / heads * kv_heads + head % heads / (heads / kv_heads);
      const int64_t offset = (kv * capacity + begin) * head_dim;
      attend_head(queries + head * head_dim, cached_keys + offset, cached_values + offset, target + head * head_dim,
                  scores.data(), count, head_dim, scale, static_cast<float>(cap));
    }
  });
  return out;
}

}  // namespace dynslice::kernels
