#include "model/decode_kernels.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "model/fast_exp.h"
#include "support/multiversion.h"

namespace dynslice::kernels {
namespace {

// Keys, and values, that are worked on side by side.
constexpr int64_t kRowGroup = 4;
// Weights a task reads at least: below this a thread's wake-up costs more than it saves.
constexpr int64_t kLeastPerTask = 32768;

// out[r] = rows[r] · x for four rows that lie `width` apart.
inline void dot_four(const float* rows, const float* x, int64_t width, float* out) {
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

template <typename Weight>
inline float dot(const Weight* row, const float* x, int64_t width) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < width; ++i) sum += load(row[i]) * x[i];
  return sum;
}

// Rows [begin, end) of the weight times every row of x: y[m, row], y [rows_of_x, out]. One row after the other: memory
// is read about twice as fast in one stream as in several side by side.
template <typename Weight>
inline void multiply_rows(const Weight* weight, const float* x, float* y, int64_t rows_of_x, int64_t width, int64_t out,
                          int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t m = 0; m < rows_of_x; ++m) y[m * out + row] = dot(weight + row * width, x + m * width, width);
  }
}

DYNSLICE_MULTIVERSION
void multiply_rows_fp32(const float* weight, const float* x, float* y, int64_t rows_of_x, int64_t width, int64_t out,
                        int64_t begin, int64_t end) {
  multiply_rows(weight, x, y, rows_of_x, width, out, begin, end);
}

DYNSLICE_MULTIVERSION
void multiply_rows_bf16(const uint16_t* weight, const float* x, float* y, int64_t rows_of_x, int64_t width, int64_t out,
                        int64_t begin, int64_t end) {
  multiply_rows(weight, x, y, rows_of_x, width, out, begin, end);
}

// One head: out [head_dim] = softmax(scale * keys q) values over `count` positions; `scores` has room for them.
DYNSLICE_MULTIVERSION
void attend_head(const float* q, const float* keys, const float* values, float* out, float* scores, int64_t count,
                 int64_t head_dim, float scale) {
  int64_t key = 0;  // keys are short: four of them share the loads of q, and still lie in one stretch of memory
  for (; key + kRowGroup <= count; key += kRowGroup) dot_four(keys + key * head_dim, q, head_dim, scores + key);
  for (; key < count; ++key) scores[key] = dot(keys + key * head_dim, q, head_dim);
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

at::Tensor linear_few_rows(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  const int64_t width = weight.size(1), out = weight.size(0), rows_of_x = x.numel() / width;
  const at::Tensor input = x.to(at::kFloat).contiguous();
  auto sizes = x.sizes().vec();
  sizes.back() = out;
  at::Tensor y = at::empty(sizes, input.options());
  const float* source = input.const_data_ptr<float>();
  float* target = y.mutable_data_ptr<float>();
  at::parallel_for(0, out, std::max<int64_t>(1, kLeastPerTask / width), [&](int64_t begin, int64_t end) {
    if (weight.scalar_type() == at::kFloat) {
      multiply_rows_fp32(weight.const_data_ptr<float>(), source, target, rows_of_x, width, out, begin, end);
    } else {
      const auto* bits = static_cast<const uint16_t*>(weight.const_data_ptr());
      multiply_rows_bf16(bits, source, target, rows_of_x, width, out, begin, end);
    }
  });
  return bias.defined() ? y.add_(bias) : y;
}

at::Tensor attend_one(const at::Tensor& q, const at::Tensor& keys, const at::Tensor& values, int64_t begin,
                      int64_t end) {
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
                  scores.data(), count, head_dim, scale);
    }
  });
  return out;
}

}  // namespace dynslice::kernels
