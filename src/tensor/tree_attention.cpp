#include "dynslice/tensor/tree_attention.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>

#include "aten.h"
#include "dynslice/tensor/capped_attention.h"
#include "dynslice/tensor/multiversion.h"
#include "tensor/fast_exp.h"

namespace dynslice::kernels {
namespace {

// Queries that one pass over keys and values serves, and values of a vector of the widest processors.
constexpr int64_t kQueries = 4, kLanes = 16;
constexpr int64_t kKeyBlock = 2 * kLanes, kDimBlock = 4 * kLanes;
// Rows of a run that one task takes: enough that packing its keys does not count.
constexpr int64_t kTaskRows = 64;

using Lanes = float __attribute__((vector_size(kLanes * sizeof(float))));
// The same wherever it lies in memory.
using MemoryLanes = float __attribute__((vector_size(kLanes * sizeof(float)), aligned(4), may_alias));

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Four queries of one head, and the keys [begin, end) that each of them sees.
struct Tile {
  const float* queries[kQueries];  // [head_dim], scaled
  int64_t begin[kQueries], end[kQueries];
};

// Keys and values of one head that a task's rows see, in fp32.
struct Seen {
  std::vector<float> keys;    // [head_dim, key_stride]
  std::vector<float> values;  // [count, dim_stride]
  int64_t count = 0, key_stride = 0, head_dim = 0, dim_stride = 0;
};

// Scores of one query become weights exp(score - top) inside of [begin, end) and 0 elsewhere in [first, last).
DYNSLICE_IN_LOOPS float weigh(float* scores, int64_t first, int64_t last, int64_t begin, int64_t end) {
  float top = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : top)
  for (int64_t i = begin; i < end; ++i) top = std::max(top, scores[i]);
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = begin; i < end; ++i) {
    scores[i] = fast_exp(scores[i] - top);
    sum += scores[i];
  }
  std::fill(scores + first, scores + begin, 0.0F);
  std::fill(scores + end, scores + last, 0.0F);
  return sum;
}

// out [kQueries, dim_stride]; scores [kQueries, key_stride] is scratch.
DYNSLICE_MULTIVERSION
void attend_tile(const Tile& tile, const Seen& seen, float cap, float* scores, float* out) {
  const int64_t first = *std::min_element(tile.begin, tile.begin + kQueries);
  const int64_t last = *std::max_element(tile.end, tile.end + kQueries);
  for (int64_t key = first / kKeyBlock * kKeyBlock; key < last; key += kKeyBlock) {
    Lanes sums[kQueries][2] = {};
    const float* column = seen.keys.data() + key;
    for (int64_t d = 0; d < seen.head_dim; ++d, column += seen.key_stride) {
      const Lanes low = *reinterpret_cast<const MemoryLanes*>(column);
      const Lanes high = *reinterpret_cast<const MemoryLanes*>(column + kLanes);
#pragma GCC unroll 4
      for (int64_t q = 0; q < kQueries; ++q) {
        sums[q][0] += low * tile.queries[q][d];
        sums[q][1] += high * tile.queries[q][d];
      }
    }
    for (int64_t q = 0; q < kQueries; ++q) {
      float* row = scores + q * seen.key_stride + key;
      *reinterpret_cast<MemoryLanes*>(row) = sums[q][0];
      *reinterpret_cast<MemoryLanes*>(row + kLanes) = sums[q][1];
    }
  }
  if (cap != 0) {
    for (int64_t q = 0; q < kQueries; ++q) {
      float* row = scores + q * seen.key_stride;
#pragma omp simd
      for (int64_t key = first; key < last; ++key) row[key] = capped(row[key], cap);
    }
  }
  float shares[kQueries];
  for (int64_t q = 0; q < kQueries; ++q) {
    shares[q] = 1.0F / weigh(scores + q * seen.key_stride, first, last, tile.begin[q], tile.end[q]);
  }
  for (int64_t dim = 0; dim < seen.dim_stride; dim += kDimBlock) {
    Lanes sums[kQueries][4] = {};
    const float* row = seen.values.data() + first * seen.dim_stride + dim;
    for (int64_t key = first; key < last; ++key, row += seen.dim_stride) {
#pragma GCC unroll 4
      for (int64_t v = 0; v < 4; ++v) {
        const Lanes value = *reinterpret_cast<const MemoryLanes*>(row + v * kLanes);
#pragma GCC unroll 4
        for (int64_t q = 0; q < kQueries; ++q) sums[q][v] += value * scores[q * seen.key_stride + key];
      }
    }
    for (int64_t q = 0; q < kQueries; ++q) {
      for (int64_t v = 0; v < 4; ++v) {
        *reinterpret_cast<MemoryLanes*>(out + q * seen.dim_stride + dim + v * kLanes) = sums[q][v] * shares[q];
      }
    }
  }
}

DYNSLICE_IN_LOOPS void store(float& target, float value) { target = value; }
DYNSLICE_IN_LOOPS void store(uint16_t& target, float value) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, value);
  target = static_cast<uint16_t>((bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16);  // to nearest, ties to even
}

// The tensors of one call. Value is float, or the bits of a bf16.
template <typename Value>
struct Call {
  const Value* qkv;          // [n, heads + 2 kv_heads, head_dim]
  const Value* path_keys;    // [positions, kv_heads, head_dim]
  const Value* path_values;  // likewise
  Value* out;                // [n, heads, head_dim]
  int64_t heads, kv_heads, head_dim, window;
  float cap;  // of the scores; 0: none
};

// Rows of one run for one head of keys.
struct Task {
  const TreeRun* run;
  const int32_t* keys;
  int64_t first, rows;  // of the run
  int64_t kv_head;
};

// What a task needs besides; one a thread, so that nothing is allocated twice.
struct Scratch {
  Seen seen;
  std::vector<float> queries, scores, out;
};

template <typename Value>
void pack(const Call<Value>& call, const Task& task, int64_t begin, int64_t end, Seen& seen) {
  seen.count = end - begin;
  seen.head_dim = call.head_dim;
  seen.key_stride = round_up(seen.count, kKeyBlock);
  seen.dim_stride = round_up(call.head_dim, kDimBlock);
  seen.keys.assign(static_cast<size_t>(seen.head_dim * seen.key_stride), 0.0F);
  seen.values.assign(static_cast<size_t>(seen.count * seen.dim_stride), 0.0F);
  const int64_t total = call.heads + 2 * call.kv_heads;
  for (int64_t i = 0; i < seen.count; ++i) {
    const int64_t key = task.keys[begin + i];
    const int64_t in_path = ((-1 - key) * call.kv_heads + task.kv_head) * call.head_dim;
    const int64_t in_chunk = (key * total + call.heads + task.kv_head) * call.head_dim;
    const Value* keys = key < 0 ? call.path_keys + in_path : call.qkv + in_chunk;
    const Value* values = key < 0 ? call.path_values + in_path : call.qkv + in_chunk + call.kv_heads * call.head_dim;
    for (int64_t d = 0; d < call.head_dim; ++d) {
      seen.keys[static_cast<size_t>(d * seen.key_stride + i)] = load(keys[d]);
      seen.values[static_cast<size_t>(i * seen.dim_stride + d)] = load(values[d]);
    }
  }
}

// Queries [rows * group, head_dim] of the heads that share the task's keys, row by row, scaled.
template <typename Value>
void take_queries(const Call<Value>& call, const Task& task, std::vector<float>& queries) {
  const int64_t group = call.heads / call.kv_heads, total = call.heads + 2 * call.kv_heads;
  const float scale = 1.0F / std::sqrt(static_cast<float>(call.head_dim));
  queries.resize(static_cast<size_t>(task.rows * group * call.head_dim));
  for (int64_t row = 0; row < task.rows; ++row) {
    const Value* source =
        call.qkv + ((task.run->first_row + task.first + row) * total + task.kv_head * group) * call.head_dim;
    float* target = queries.data() + row * group * call.head_dim;
    for (int64_t i = 0; i < group * call.head_dim; ++i) target[i] = load(source[i]) * scale;
  }
}

template <typename Value>
void run_task(const Call<Value>& call, const Task& task, Scratch& scratch) {
  const int64_t group = call.heads / call.kv_heads, queries = task.rows * group;
  const int64_t first_position = task.run->first_position + task.first;
  const auto begin_of = [&](int64_t position) {
    return call.window > 0 ? std::max<int64_t>(0, position - call.window + 1) : 0;
  };
  const int64_t begin = begin_of(first_position);
  pack(call, task, begin, first_position + task.rows, scratch.seen);
  take_queries(call, task, scratch.queries);
  scratch.scores.resize(static_cast<size_t>(kQueries * scratch.seen.key_stride));
  scratch.out.resize(static_cast<size_t>(kQueries * scratch.seen.dim_stride));
  for (int64_t first = 0; first < queries; first += kQueries) {
    Tile tile;
    for (int64_t q = 0; q < kQueries; ++q) {
      const int64_t query = std::min(first + q, queries - 1), position = first_position + query / group;
      tile.queries[q] = scratch.queries.data() + query * call.head_dim;
      tile.begin[q] = begin_of(position) - begin;
      tile.end[q] = position + 1 - begin;
    }
    attend_tile(tile, scratch.seen, call.cap, scratch.scores.data(), scratch.out.data());
    for (int64_t query = first; query < std::min(first + kQueries, queries); ++query) {
      const int64_t row = task.run->first_row + task.first + query / group;
      Value* target = call.out + (row * call.heads + task.kv_head * group + query % group) * call.head_dim;
      const float* source = scratch.out.data() + (query - first) * scratch.seen.dim_stride;
      for (int64_t d = 0; d < call.head_dim; ++d) store(target[d], source[d]);
    }
  }
}

std::vector<Task> tasks_of(const TreeSlice& slice, int64_t kv_heads) {
  std::vector<Task> tasks;
  for (size_t i = 0; i < slice.runs.size(); ++i) {
    const TreeRun& run = slice.runs[i];
    for (int64_t first = 0; first < run.rows; first += kTaskRows) {
      for (int64_t head = 0; head < kv_heads; ++head) {
        tasks.push_back(
            {&run, slice.keys.data() + slice.first_keys[i], first, std::min(kTaskRows, run.rows - first), head});
      }
    }
  }
  return tasks;
}

template <typename Value>
void attend_all(const Call<Value>& call, const TreeSlice& slice) {
  const std::vector<Task> tasks = tasks_of(slice, call.kv_heads);
  // Tasks differ in cost, so that every thread takes the next one that is left.
  std::atomic<size_t> next = 0;
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), static_cast<int64_t>(tasks.size()));
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    Scratch scratch;
    for (size_t task = next++; task < tasks.size(); task = next++) run_task(call, tasks[task], scratch);
  });
}

// Row `index` of what keys of a slice point to when the path stands in front of the chunk.
std::vector<int64_t> rows_behind_path(const TreeSlice& slice, int64_t path_length) {
  std::vector<int64_t> rows;
  for (const int32_t key : slice.keys) rows.push_back(key < 0 ? -1 - key : path_length + key);
  return rows;
}

}  // namespace

at::Tensor composed_tree_attention(const at::Tensor& qkv, int64_t heads, int64_t kv_heads, int64_t window,
                                   const TreeSlice& slice, const TreePath& path, double cap) {
  const int64_t group = heads / kv_heads, head_dim = qkv.size(2);
  const auto whole = at::TensorOptions().dtype(at::kLong).device(qkv.device());
  const at::Tensor keys = at::cat({path.keys, qkv.narrow(1, heads, kv_heads)});
  const at::Tensor values = at::cat({path.values, qkv.narrow(1, heads + kv_heads, kv_heads)});
  const at::Tensor rows = at::tensor(rows_behind_path(slice, path.keys.size(0))).to(qkv.device());
  at::Tensor out = at::empty({qkv.size(0), heads * head_dim}, qkv.options());
  for (size_t i = 0; i < slice.runs.size(); ++i) {
    const TreeRun& run = slice.runs[i];
    const int64_t length = run.first_position + run.rows;
    const at::Tensor chosen = rows.narrow(0, slice.first_keys[i], length);
    // [1, heads, length, head_dim]; neighbouring heads of queries share a head of keys.
    const auto seen = [&](const at::Tensor& all) {
      return all.index_select(0, chosen).transpose(0, 1).repeat_interleave(group, 0).unsqueeze(0);
    };
    const at::Tensor q = qkv.narrow(0, run.first_row, run.rows).narrow(1, 0, heads).transpose(0, 1).unsqueeze(0);
    at::Tensor target = out.narrow(0, run.first_row, run.rows);
    const auto keep = [&](const at::Tensor& attended) {
      target.copy_(attended.squeeze(0).transpose(0, 1).reshape({run.rows, -1}));
    };
    if (cap != 0) {
      keep(capped_attention(q, seen(keys), seen(values), window, cap));
      continue;
    }
    const at::Tensor query = at::arange(run.first_position, length, whole).view({-1, 1});
    const at::Tensor key = at::arange(length, whole).view({1, -1});
    at::Tensor hidden = key.gt(query);
    if (window > 0) hidden = hidden.logical_or(key.le(query - window));
    const at::Tensor mask =
        at::zeros(hidden.sizes(), qkv.options()).masked_fill_(hidden, -std::numeric_limits<float>::infinity());
    keep(at::scaled_dot_product_attention(q, seen(keys), seen(values), mask));
  }
  return out;
}

at::Tensor tree_attention(const at::Tensor& qkv, int64_t heads, int64_t kv_heads, int64_t window,
                          const TreeSlice& slice, const TreePath& path, double cap) {
  const bool has_kernel =
      qkv.device().is_cpu() && (qkv.scalar_type() == at::kFloat || qkv.scalar_type() == at::kBFloat16);
  if (!has_kernel) return composed_tree_attention(qkv, heads, kv_heads, window, slice, path, cap);
  at::Tensor out = at::empty({qkv.size(0), heads * qkv.size(2)}, qkv.options());
  const auto attend = [&]<typename Value>(Value) {
    attend_all<Value>(
        {static_cast<const Value*>(qkv.const_data_ptr()), static_cast<const Value*>(path.keys.const_data_ptr()),
         static_cast<const Value*>(path.values.const_data_ptr()), static_cast<Value*>(out.mutable_data_ptr()), heads,
         kv_heads, qkv.size(2), window, static_cast<float>(cap)},
        slice);
  };
  if (qkv.scalar_type() == at::kFloat) {
    attend(float{});
  } else {
    attend(uint16_t{});
  }
  return out;
}

}  // namespace dynslice::kernels
