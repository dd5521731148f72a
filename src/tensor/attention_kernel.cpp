#include "dynslice/tensor/attention_kernel.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "aten.h"
#include "dynslice/support/check.h"
#include "tensor/fast_exp.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define DYNSLICE_HAS_ATTENTION_KERNEL 1
#include <immintrin.h>
#endif

namespace dynslice::kernels {

#ifdef DYNSLICE_HAS_ATTENTION_KERNEL
namespace {

// Queries that are worked on together, and keys whose scores with them fill the registers.
constexpr int64_t kQueries = 6;
constexpr int64_t kKeys = 64;
constexpr int64_t kLanes = 16;

bool has_avx512() {
  return __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0 &&
         __builtin_cpu_supports("avx512vl") != 0 && __builtin_cpu_supports("avx512dq") != 0;
}

// One attention problem's sizes.
struct Shape {
  int64_t length, heads, kv_heads, head_dim, window;
  float cap;  // of scores; 0: none
  int64_t total() const { return heads + 2 * kv_heads; }
  int64_t key_blocks() const { return (length + kKeys - 1) / kKeys; }
  int64_t padded() const { return key_blocks() * kKeys; }
};

// Arithmetic on fp32 values. A "step" is what one instruction multiplies at a time: one value.
struct Fp32 {
  using Value = float;   // in memory
  using Packed = float;  // a step
  static constexpr int64_t kPerStep = 1;
  static Packed step(const Value* at) { return *at; }
  static Packed step_of_columns(const Value* first, const Value*) { return *first; }
  static Value narrow(float value) { return value; }
};

// On bf16 values: a step is a pair of them.
struct Bf16 {
  using Value = uint16_t;
  using Packed = uint32_t;
  static constexpr int64_t kPerStep = 2;
  static Packed step(const Value* at) {
    Packed pair;
    std::memcpy(&pair, at, sizeof pair);
    return pair;
  }
  static Packed step_of_columns(const Value* first, const Value* second) {
    return *first | (second == nullptr ? 0U : static_cast<uint32_t>(*second) << 16);
  }
  static Value narrow(float value) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, value);
    return static_cast<Value>((bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16);
  }
};

// Keys of one head as [block][step of head_dim][key in block], values as [step of keys][head_dim].
template <typename Number>
void pack_keys(const typename Number::Value* keys, const Shape& shape, typename Number::Packed* packed) {
  const int64_t stride = shape.total() * shape.head_dim, steps = shape.head_dim / Number::kPerStep;
  for (int64_t block = 0; block < shape.key_blocks(); ++block) {
    typename Number::Packed* target = packed + block * steps * kKeys;
    for (int64_t key = 0; key < kKeys; ++key) {
      const int64_t token = block * kKeys + key;
      for (int64_t step = 0; step < steps; ++step) {
        target[step * kKeys + key] =
            token < shape.length ? Number::step(keys + token * stride + step * Number::kPerStep) : 0;
      }
    }
  }
}

template <typename Number>
void pack_values(const typename Number::Value* values, const Shape& shape, typename Number::Packed* packed) {
  const int64_t stride = shape.total() * shape.head_dim;
  for (int64_t step = 0; step < shape.padded() / Number::kPerStep; ++step) {
    const int64_t token = step * Number::kPerStep;
    for (int64_t i = 0; i < shape.head_dim; ++i) {
      const typename Number::Value* first = values + token * stride + i;
      const bool has_second = Number::kPerStep == 2 && token + 1 < shape.length;
      packed[step * shape.head_dim + i] =
          token < shape.length ? Number::step_of_columns(first, has_second ? first + stride : nullptr) : 0;
    }
  }
}

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma")

DYNSLICE_IN_LOOPS __m512 multiply_add(__m512 sum, const float* columns, float row) {
  return _mm512_fmadd_ps(_mm512_loadu_ps(columns), _mm512_set1_ps(row), sum);
}
DYNSLICE_IN_LOOPS __m512 multiply_add(__m512 sum, const uint32_t* columns, uint32_t row) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(_mm512_loadu_si512(columns)),
                          reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(row))));
}

// out [kQueries, 16 * vectors] (+)= rows [kQueries, steps] columns [steps, 16 * vectors].
template <typename Number, int vectors>
DYNSLICE_IN_LOOPS void multiply_tile(const typename Number::Value* const* rows, const typename Number::Packed* columns,
                                     int64_t steps, int64_t column_stride, float* out, int64_t out_stride) {
  __m512 sums[kQueries][vectors];
#pragma GCC unroll 8
  for (int64_t q = 0; q < kQueries; ++q) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) sums[q][v] = _mm512_setzero_ps();
  }
  for (int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 8
    for (int64_t q = 0; q < kQueries; ++q) {
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) {
        sums[q][v] = multiply_add(sums[q][v], columns + step * column_stride + v * kLanes,
                                  Number::step(rows[q] + step * Number::kPerStep));
      }
    }
  }
#pragma GCC unroll 8
  for (int64_t q = 0; q < kQueries; ++q) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) _mm512_storeu_ps(out + q * out_stride + v * kLanes, sums[q][v]);
  }
}

// scores[begin, end) → weights exp(scale * (score - top)) in place, zero outside of [first, last]; their sum. Where
// scores are capped, it is scale * score that is.
DYNSLICE_IN_LOOPS float weigh(float* scores, int64_t begin, int64_t end, int64_t first, int64_t last, float scale,
                              float cap) {
  if (cap != 0) {
#pragma omp simd
    for (int64_t i = first; i <= last; ++i) scores[i] = capped(scale * scores[i], cap);
    scale = 1;
  }
  float top = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : top)
  for (int64_t i = first; i <= last; ++i) top = std::max(top, scores[i]);
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = first; i <= last; ++i) {
    scores[i] = fast_exp(scale * (scores[i] - top));
    sum += scores[i];
  }
  for (int64_t i = begin; i < first; ++i) scores[i] = 0;
  for (int64_t i = last + 1; i < end; ++i) scores[i] = 0;
  return sum;
}

// Attention of kQueries queries of one head, from `first_query` on; those beyond the window's end repeat its last one.
template <typename Number>
void attend_tile(const typename Number::Value* queries, const typename Number::Packed* keys,
                 const typename Number::Packed* values, const Shape& shape, int64_t first_query,
                 std::vector<float>& scores, std::vector<typename Number::Value>& weights,
                 typename Number::Value* out) {
  using Packed = typename Number::Packed;
  const int64_t stride = shape.total() * shape.head_dim, steps = shape.head_dim / Number::kPerStep;
  const int64_t last_query = std::min(first_query + kQueries, shape.length) - 1;
  const int64_t seen = shape.window > 0 ? shape.window : shape.length;
  const int64_t begin = std::max<int64_t>(0, first_query - seen + 1) / kKeys * kKeys;
  const int64_t end = (last_query / kKeys + 1) * kKeys, padded = shape.padded();

  const typename Number::Value* rows[kQueries];
  for (int64_t q = 0; q < kQueries; ++q) {
    rows[q] = queries + std::min(first_query + q, last_query) * stride;
  }
  for (int64_t key = begin; key < end; key += kKeys) {
    multiply_tile<Number, kKeys / kLanes>(rows, keys + key * steps, steps, kKeys, scores.data() + key, padded);
  }
  const float scale = 1.0F / std::sqrt(static_cast<float>(shape.head_dim));
  float sums[kQueries];
  for (int64_t q = 0; q < kQueries; ++q) {
    const int64_t query = std::min(first_query + q, last_query);
    float* row = scores.data() + q * padded;
    sums[q] = weigh(row, begin, end, std::max<int64_t>(0, query - seen + 1), query, scale, shape.cap);
    typename Number::Value* narrow = weights.data() + q * padded;
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) narrow[i] = Number::narrow(row[i]);
    rows[q] = narrow + begin;
  }
  float* sum_of_values = scores.data();  // [kQueries, head_dim]: the scores are used up
  const Packed* columns = values + begin / Number::kPerStep * shape.head_dim;
  const int64_t value_steps = (end - begin) / Number::kPerStep;
  int64_t i = 0;
  for (; i + 4 * kLanes <= shape.head_dim; i += 4 * kLanes) {
    multiply_tile<Number, 4>(rows, columns + i, value_steps, shape.head_dim, sum_of_values + i, shape.head_dim);
  }
  for (; i < shape.head_dim; i += kLanes) {
    multiply_tile<Number, 1>(rows, columns + i, value_steps, shape.head_dim, sum_of_values + i, shape.head_dim);
  }
  for (int64_t q = 0; first_query + q <= last_query; ++q) {
    typename Number::Value* target = out + (first_query + q) * shape.heads * shape.head_dim;
    const float* row = sum_of_values + q * shape.head_dim;
    const float share = 1.0F / sums[q];
#pragma omp simd
    for (int64_t d = 0; d < shape.head_dim; ++d) target[d] = Number::narrow(row[d] * share);
  }
}

#pragma GCC pop_options

template <typename Number>
void attend_all(const typename Number::Value* qkv, const Shape& shape, int64_t batch, typename Number::Value* out) {
  using Value = typename Number::Value;
  using Packed = typename Number::Packed;
  const int64_t packed_size = shape.padded() * shape.head_dim / Number::kPerStep;
  const int64_t per_window = shape.length * shape.total() * shape.head_dim;
  std::vector<Packed> keys(static_cast<size_t>(batch * shape.kv_heads * packed_size)), values(keys.size());
  at::parallel_for(0, batch * shape.kv_heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const Value* window = qkv + task / shape.kv_heads * per_window;
      const int64_t head = shape.heads + task % shape.kv_heads;
      pack_keys<Number>(window + head * shape.head_dim, shape, keys.data() + task * packed_size);
      pack_values<Number>(window + (head + shape.kv_heads) * shape.head_dim, shape, values.data() + task * packed_size);
    }
  });
  const int64_t tiles = (shape.length + kQueries - 1) / kQueries, group = shape.heads / shape.kv_heads;
  at::parallel_for(0, batch * shape.heads * tiles, 16, [&](int64_t begin, int64_t end) {
    const auto room = static_cast<size_t>(kQueries * std::max(shape.padded(), shape.head_dim));
    std::vector<float> scores(room);
    std::vector<Value> weights(room);
    for (int64_t task = begin; task < end; ++task) {
      // Late tiles cost most: taken in turns from both ends, every range of tasks costs about the same.
      const int64_t head_task = task / tiles, turn = task % tiles;
      const int64_t tile = turn % 2 == 0 ? turn / 2 : tiles - 1 - turn / 2;
      const int64_t window = head_task / shape.heads, head = head_task % shape.heads;
      const int64_t source = (window * shape.kv_heads + head / group) * packed_size;
      attend_tile<Number>(qkv + window * per_window + head * shape.head_dim, keys.data() + source,
                          values.data() + source, shape, tile * kQueries, scores, weights,
                          out + (window * shape.length * shape.heads + head) * shape.head_dim);
    }
  });
}

}  // namespace

bool causal_attention_applies(const at::Tensor& qkv) {
  static const bool has_instructions = has_avx512() && __builtin_cpu_supports("avx512bf16") != 0;
  const bool fits = qkv.device().is_cpu() && qkv.is_contiguous() && qkv.size(3) % kLanes == 0;
  return has_instructions && fits && (qkv.scalar_type() == at::kFloat || qkv.scalar_type() == at::kBFloat16);
}

at::Tensor causal_attention(const at::Tensor& qkv, int64_t heads, int64_t kv_heads, int64_t window, double cap) {
  const Shape shape{qkv.size(1), heads, kv_heads, qkv.size(3), window, static_cast<float>(cap)};
  at::Tensor out = at::empty({qkv.size(0), shape.length, heads * shape.head_dim}, qkv.options());
  if (qkv.scalar_type() == at::kFloat) {
    attend_all<Fp32>(qkv.const_data_ptr<float>(), shape, qkv.size(0), out.mutable_data_ptr<float>());
  } else {
    attend_all<Bf16>(static_cast<const uint16_t*>(qkv.const_data_ptr()), shape, qkv.size(0),
                     static_cast<uint16_t*>(out.mutable_data_ptr()));
  }
  return out;
}

#else

bool causal_attention_applies(const at::Tensor&) { return false; }
at::Tensor causal_attention(const at::Tensor&, int64_t, int64_t, int64_t, double) {
  throw_broken_invariant("this processor has no attention kernel");
}

#endif

}  // namespace dynslice::kernels
