#include "score/zd.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "aten.h"
#include "dynslice/model/tensor_layout.h"
#include "dynslice/score/score.h"
#include "dynslice/tensor/dtype.h"
#include "dynslice/tensor/multiversion.h"

namespace dynslice {
namespace {

// Values that one thread takes at a time.
constexpr int64_t kBlock = int64_t{1} << 17;

// bf16 as its bits, so that the conversion is vectorized.
struct Bf16 {
  uint16_t bits;
};
float number(float value) { return value; }
float number(Bf16 value) { return __builtin_bit_cast(float, static_cast<uint32_t>(value.bits) << 16); }

// Of values minus a pivot near them: all the same, they have no spread at all, rather than what rounding leaves.
struct Sums {
  double first = 0;
  double second = 0;  // of the squares
};

DYNSLICE_MULTIVERSION
Sums sums_of(const float* values, int64_t count, double pivot) {
  double first = 0, second = 0;
#pragma omp simd reduction(+ : first, second)
  for (int64_t i = 0; i < count; ++i) {
    const double d = static_cast<double>(values[i]) - pivot;
    first += d;
    second += d * d;
  }
  return {first, second};
}

DYNSLICE_MULTIVERSION
Sums sums_of(const Bf16* values, int64_t count, double pivot) {
  double first = 0, second = 0;
#pragma omp simd reduction(+ : first, second)
  for (int64_t i = 0; i < count; ++i) {
    const double d = static_cast<double>(number(values[i])) - pivot;
    first += d;
    second += d * d;
  }
  return {first, second};
}

DYNSLICE_MULTIVERSION
int64_t count_above(const float* values, int64_t count, float threshold) {
  int32_t above = 0;  // a block's fit
#pragma omp simd reduction(+ : above)
  for (int64_t i = 0; i < count; ++i) above += values[i] > threshold ? 1 : 0;
  return above;
}

DYNSLICE_MULTIVERSION
int64_t count_above(const Bf16* values, int64_t count, float threshold) {
  int32_t above = 0;
#pragma omp simd reduction(+ : above)
  for (int64_t i = 0; i < count; ++i) above += number(values[i]) > threshold ? 1 : 0;
  return above;
}

// The largest float that is not above `limit`: no float lies between the two, so that w > limit and w > it are the
// same.
float float_below(double limit) {
  const auto nearest = static_cast<float>(limit);
  return static_cast<double>(nearest) <= limit ? nearest
                                               : std::nextafter(nearest, -std::numeric_limits<float>::infinity());
}

template <typename Fn>
auto with_values(const at::Tensor& tensor, const Fn& fn) {
  if (tensor.scalar_type() == at::kBFloat16) return fn(static_cast<const Bf16*>(tensor.const_data_ptr()));
  return fn(tensor.const_data_ptr<float>());
}

// fn(first value, number of values) of every block of the tensor, in the order of the blocks.
template <typename Result, typename Fn>
std::vector<Result> of_blocks(const at::Tensor& tensor, const Fn& fn) {
  const int64_t blocks = (tensor.numel() + kBlock - 1) / kBlock;
  std::vector<Result> results(static_cast<size_t>(blocks));
  with_values(tensor, [&](const auto* values) {
    at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        const int64_t first = block * kBlock;
        results[static_cast<size_t>(block)] = fn(values + first, std::min(kBlock, tensor.numel() - first));
      }
    });
  });
  return results;
}

double score_layer(const Checkpoint& checkpoint, int64_t layer) {
  std::vector<at::Tensor> loaded;
  for (const OutputTensor& weight : linear_weights(checkpoint.config(), layer, at::kFloat)) {
    const TensorInfo* info = checkpoint.find(weight.name);
    const at::ScalarType dtype = info == nullptr ? at::kFloat : held_dtype(*info);
    loaded.push_back(checkpoint.load(weight.name, weight.shape, dtype));
  }
  return share_of_outstanding(loaded);
}

}  // namespace

at::ScalarType held_dtype(const TensorInfo& weight) {
  return weight_dtype_of_file(weight.dtype) == at::kBFloat16 ? at::kBFloat16 : at::kFloat;
}

double share_of_outstanding(const std::vector<at::Tensor>& weights) {
  int64_t count = 0;
  for (const at::Tensor& tensor : weights) count += tensor.numel();
  if (count == 0) return 0;
  const auto filled = std::ranges::find_if(weights, [](const at::Tensor& tensor) { return tensor.numel() > 0; });
  const double pivot = with_values(*filled, [](const auto* values) { return static_cast<double>(number(*values)); });
  Sums all;
  for (const at::Tensor& tensor : weights) {
    const auto block = [pivot](const auto* values, int64_t size) { return sums_of(values, size, pivot); };
    for (const Sums& sums : of_blocks<Sums>(tensor, block)) {
      all.first += sums.first;
      all.second += sums.second;
    }
  }
  const double mean = all.first / static_cast<double>(count);
  const double variance = all.second / static_cast<double>(count) - mean * mean;
  if (!(variance > 0)) return 0;
  const float threshold = float_below(pivot + mean + std::sqrt(variance));
  int64_t above = 0;
  for (const at::Tensor& tensor : weights) {
    const auto block = [threshold](const auto* values, int64_t size) { return count_above(values, size, threshold); };
    for (const int64_t of_block : of_blocks<int64_t>(tensor, block)) above += of_block;
  }
  return static_cast<double>(above) / static_cast<double>(count);
}

LayerScores score_weights(const Checkpoint& checkpoint, ProgressSink& progress, const JournalPhase& journal) {
  LayerScores scores;
  scores.metric = Metric{MetricKind::kZScores, 1}.name();
  scores.more_important = MoreImportant::kLow;
  if (const auto result = journal.result()) {
    scores.values = result->at("values").get<std::vector<double>>();
    return scores;
  }
  const int64_t layers = checkpoint.config().num_layers();
  WalkState state;
  state.keep("values", scores.values);
  ProgressTask task(progress, "Scoring weights", layers, "layers");
  if (const auto kept = journal.restore(state, at::kCPU)) task.skip(*kept);
  for (auto layer = static_cast<int64_t>(scores.values.size()); layer < layers; ++layer) {
    scores.values.push_back(score_layer(checkpoint, layer));
    journal.save(layer + 1, layers, state);
    task.advance(1);
  }
  journal.finish({{"values", scores.values}});
  return scores;
}

}  // namespace dynslice
