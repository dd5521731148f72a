#include "dynslice/tensor/kernels.h"

#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/layer_norm.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <string>
#include <string_view>

#include "aten.h"
#include "dynslice/support/environment.h"
#include "dynslice/tensor/decode_kernels.h"
#include "dynslice/tensor/multiversion.h"
#include "tensor/fast_exp.h"

namespace dynslice::kernels {
namespace {

using OnednnLinear = at::Tensor(const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&,
                                std::string_view, c10::List<std::optional<at::Scalar>>,
                                std::optional<std::string_view>);

// oneDNN uses AVX-512 on every vendor's processors, MKL on Intel's only: measured 1.7 times faster on AMD, equal
// on Intel. DYNSLICE_GEMM=mkl|onednn overrides the choice.
bool prefer_onednn() {
  static const bool preferred = [] {
    if (const std::string choice = environment("DYNSLICE_GEMM"); !choice.empty()) return choice == "onednn";
#if defined(__x86_64__)
    return !__builtin_cpu_is("intel");
#else
    return true;
#endif
  }();
  return preferred;
}

const c10::TypedOperatorHandle<OnednnLinear>* onednn_linear() {
  static const auto handle = []() -> std::optional<c10::TypedOperatorHandle<OnednnLinear>> {
    const auto schema = c10::Dispatcher::singleton().findSchema({"mkldnn::_linear_pointwise", ""});
    if (!schema || !prefer_onednn()) return std::nullopt;
    return schema->typed<OnednnLinear>();
  }();
  return handle ? &*handle : nullptr;
}

// Without it LibTorch multiplies bf16 with loops that take twenty to a thousand times as long as fp32's products.
bool has_bf16_products() {
  static const bool has = [] {
    const auto schema = c10::Dispatcher::singleton().findSchema({"mkldnn::_is_mkldnn_bf16_supported", ""});
    return schema && schema->typed<bool()>().call();
  }();
  return has;
}

bool is_cpu_fp32(const at::Tensor& x) { return x.device().is_cpu() && x.scalar_type() == at::kFloat; }
bool is_cpu_bf16(const at::Tensor& x) { return x.device().is_cpu() && x.scalar_type() == at::kBFloat16; }

// Whether the loops below serve a tensor: fp32 or bf16 in memory, fp32 arithmetic.
bool has_loops(const at::Tensor& x) { return is_cpu_fp32(x) || is_cpu_bf16(x); }

// Rows per task such that a task is worth a thread's wake-up.
int64_t grain(int64_t width) { return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, width)); }

// bf16 as its bits, so that the conversions are vectorized.
using Bf16 = uint16_t;

DYNSLICE_IN_LOOPS void store(float& target, float value) { target = value; }
// Round to nearest, ties to even; NaN stays NaN because the caller's values are checked elsewhere when they must be.
DYNSLICE_IN_LOOPS void store(Bf16& target, float value) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, value);
  target = static_cast<Bf16>((bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16);
}

template <typename T>
const T* values_of(const at::Tensor& x) {
  return static_cast<const T*>(x.const_data_ptr());
}

// NaN and Inf are what has all bits of the exponent set.
DYNSLICE_MULTIVERSION
bool exponent_is_full(const uint32_t* words, int64_t count, uint32_t exponent) {
  uint32_t found = 0;
#pragma omp simd reduction(| : found)
  for (int64_t i = 0; i < count; ++i) found |= (words[i] & exponent) == exponent ? 1U : 0U;
  return found != 0;
}

DYNSLICE_MULTIVERSION
bool exponent_is_full(const uint16_t* words, int64_t count, uint16_t exponent) {
  uint16_t found = 0;
#pragma omp simd reduction(| : found)
  for (int64_t i = 0; i < count; ++i) {
    found = static_cast<uint16_t>(found | static_cast<uint16_t>((words[i] & exponent) == exponent));
  }
  return found != 0;
}

template <typename Word>
bool no_exponent_is_full(const at::Tensor& values, Word exponent) {
  const Word* words = values_of<Word>(values);
  std::atomic<bool> found = false;
  at::parallel_for(0, values.numel(), int64_t{1} << 18, [&](int64_t begin, int64_t end) {
    if (exponent_is_full(words + begin, end - begin, exponent)) found = true;
  });
  return !found;
}
template <typename T>
T* mutable_values_of(at::Tensor& x) {
  return static_cast<T*>(x.mutable_data_ptr());
}

// Calls fn with a value of the type that the tensor's elements have in memory.
template <typename Fn>
void with_element_type(const at::Tensor& x, const Fn& fn) {
  if (x.scalar_type() == at::kFloat) {
    fn(float{});
  } else {
    fn(Bf16{});
  }
}

template <typename In, typename Out>
DYNSLICE_MULTIVERSION void rms_norm_row(const In* x, const float* weight, Out* y, int64_t width, double divisor,
                                        double eps) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < width; ++i) sum += load(x[i]) * load(x[i]);
  const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(sum) / divisor + eps));
  if (weight == nullptr) {  // NOLINT(bugprone-branch-clone): it does not look behind the pragmas
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) store(y[i], load(x[i]) * scale);
  } else {
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) store(y[i], load(x[i]) * scale * weight[i]);
  }
}

template <typename T>
DYNSLICE_MULTIVERSION void rotate_head(T* head, const float* cos, const float* sin, int64_t half) {
  T* second = head + half;
#pragma omp simd
  for (int64_t i = 0; i < half; ++i) {
    const float a = load(head[i]);
    const float b = load(second[i]);
    store(head[i], a * cos[i] - b * sin[i]);
    store(second[i], b * cos[i] + a * sin[i]);
  }
}

template <typename T>
DYNSLICE_MULTIVERSION void rotate_neighbours(T* head, const float* cos, const float* sin, int64_t pairs) {
  for (int64_t i = 0; i < pairs; ++i) {
    const float a = load(head[2 * i]);
    const float b = load(head[2 * i + 1]);
    store(head[2 * i], a * cos[i] - b * sin[i]);
    store(head[2 * i + 1], b * cos[i] + a * sin[i]);
  }
}

// sum [width] += x [common] (+ correction [corrected]); sum in fp32, or bf16 that is widened into `sum`.
template <typename Branch, typename Correction>
DYNSLICE_MULTIVERSION void residual_row(const Branch* branch, const float* x, const Correction* correction, float* sum,
                                        int64_t width, int64_t common, int64_t corrected) {
#pragma omp simd
  for (int64_t i = 0; i < common; ++i) sum[i] = load(branch[i]) + x[i];
#pragma omp simd
  for (int64_t i = common; i < width; ++i) sum[i] = load(branch[i]);
  if (correction == nullptr) return;
#pragma omp simd
  for (int64_t i = 0; i < corrected; ++i) sum[i] += load(correction[i]);
}

template <typename T>
DYNSLICE_MULTIVERSION void silu_mul_row(const T* gate, const T* up, T* y, int64_t width) {
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) store(y[i], load(gate[i]) / (1.0F + fast_exp(-load(gate[i]))) * load(up[i]));
}

// (1 + tanh u) / 2 = 1 / (1 + exp(-2u)).
template <typename T>
DYNSLICE_MULTIVERSION void gelu_mul_row(const T* gate, const T* up, T* y, int64_t width) {
  constexpr float kSlope = 1.5957691216F, kCubic = 0.044715F;  // 2 √(2/π)
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) {
    const float x = load(gate[i]);
    store(y[i], x / (1.0F + fast_exp(-kSlope * (x + kCubic * x * x * x))) * load(up[i]));
  }
}

// Sums of up to 4096 exponentials in fp32 lanes, those sums in fp64.
template <typename Value>
DYNSLICE_IN_LOOPS double logsumexp(const Value* x, int64_t width) {
  float top = load(x[0]);
#pragma omp simd reduction(max : top)
  for (int64_t i = 0; i < width; ++i) top = std::max(top, load(x[i]));
  double total = 0;
  for (int64_t begin = 0; begin < width; begin += 4096) {
    const int64_t end = std::min(width, begin + 4096);
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = begin; i < end; ++i) sum += fast_exp(load(x[i]) - top);
    total += static_cast<double>(sum);
  }
  return static_cast<double>(top) + std::log(total);
}

DYNSLICE_MULTIVERSION
double logsumexp_row_fp32(const float* x, int64_t width) { return logsumexp(x, width); }

DYNSLICE_MULTIVERSION
double logsumexp_row_bf16(const uint16_t* x, int64_t width) { return logsumexp(x, width); }

// Parts of wider matrices would go to oneDNN's reference code, which takes a thousand times as long.
at::Tensor packed(const at::Tensor& matrix) {
  return matrix.is_contiguous() || matrix.t().is_contiguous() ? matrix : matrix.contiguous();
}

// LibTorch's own, which is one kernel, divides by the width: with r = divisor / width its eps is r eps, and its result
// √r too small.
at::Tensor composed_rms_norm(const at::Tensor& x, const at::Tensor& weight, int64_t divisor, double eps) {
  const int64_t width = x.size(-1);
  const double ratio = static_cast<double>(divisor) / static_cast<double>(width);
  std::optional<at::Tensor> scale = weight.defined() ? std::optional(weight) : std::nullopt;
  if (ratio != 1) scale = scale ? *scale * std::sqrt(ratio) : at::full({width}, std::sqrt(ratio), x.options());
  return at::rms_norm(x, {width}, scale, ratio * eps);
}

// Products of bf16 by way of fp32, in blocks of weight's rows.
at::Tensor linear_by_fp32(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  constexpr int64_t kBlockValues = int64_t{1} << 24;
  const int64_t out = weight.size(0), step = std::max<int64_t>(1, kBlockValues / std::max<int64_t>(1, weight.size(1)));
  const at::Tensor input = x.to(at::kFloat);
  std::vector<at::Tensor> parts;
  for (int64_t first = 0; first < out; first += step) {
    const int64_t rows = std::min(step, out - first);
    const at::Tensor added = bias.defined() ? bias.narrow(0, first, rows).to(at::kFloat) : at::Tensor();
    parts.push_back(kernels::linear(input, weight.narrow(0, first, rows).to(at::kFloat), added).to(at::kBFloat16));
  }
  return parts.size() == 1 ? parts.front() : at::cat(parts, -1);
}

}  // namespace

bool multiplies(at::ScalarType dtype) { return dtype != at::kBFloat16 || has_bf16_products(); }

at::Tensor matmul(const at::Tensor& a, const at::Tensor& b) {
  // oneDNN wants the columns of b side by side: a copy of a large matrix that many rows meet pays for itself.
  constexpr int64_t kWorthCopying = 1 << 20, kManyRows = 1024;
  if (is_cpu_bf16(a) && !multiplies(at::kBFloat16))
    return kernels::matmul(a.to(at::kFloat), b.to(at::kFloat)).to(at::kBFloat16);
  if (!is_cpu_fp32(a) || !is_cpu_fp32(b) || a.dim() != 2 || b.dim() != 2 || a.size(0) < 16) return at::matmul(a, b);
  const auto* onednn = onednn_linear();
  if (onednn == nullptr) return at::matmul(a, b);
  const bool copies = b.numel() >= kWorthCopying && a.size(0) >= kManyRows;
  const at::Tensor columns = copies ? b.t().contiguous() : packed(b.t());
  return onednn->call(packed(a), columns, std::nullopt, "none", c10::List<std::optional<at::Scalar>>(), "");
}

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  if (few_rows_apply(x, weight)) return linear_few_rows(x, weight, bias);
  const at::Tensor input = x.scalar_type() == weight.scalar_type() ? x : x.to(weight.scalar_type());
  if (is_cpu_bf16(input) && !multiplies(at::kBFloat16)) return linear_by_fp32(input, weight, bias);
  if (is_cpu_fp32(input) && input.numel() / input.size(-1) >= 16) {
    if (const auto* onednn = onednn_linear()) {
      const auto optional_bias = bias.defined() ? std::optional<at::Tensor>(bias) : std::nullopt;
      return onednn->call(input, weight, optional_bias, "none", c10::List<std::optional<at::Scalar>>(), "");
    }
  }
  return at::linear(input, weight, bias);
}

bool uses_onednn() { return onednn_linear() != nullptr; }

at::Tensor layer_norm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, double eps,
                      at::ScalarType dtype) {
  return at::layer_norm(x.to(at::kFloat), {x.size(-1)}, weight, bias, eps).to(dtype);
}

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, int64_t divisor, double eps, at::ScalarType dtype) {
  if (!has_loops(x) || (dtype != at::kFloat && dtype != at::kBFloat16)) {
    return composed_rms_norm(x.to(at::kFloat), weight, divisor, eps).to(dtype);
  }
  const at::Tensor input = x.contiguous();
  at::Tensor y = at::empty(input.sizes(), input.options().dtype(dtype));
  const int64_t width = input.size(-1);
  const float* scale = weight.defined() ? weight.const_data_ptr<float>() : nullptr;
  with_element_type(input, [&]<typename In>(In) {
    with_element_type(y, [&]<typename Out>(Out) {
      const In* source = values_of<In>(input);
      Out* target = mutable_values_of<Out>(y);
      at::parallel_for(0, input.numel() / width, grain(width), [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
          rms_norm_row(source + row * width, scale, target + row * width, width, static_cast<double>(divisor), eps);
        }
      });
    });
  });
  return y;
}

void apply_rope_(at::Tensor& qkv, int64_t heads, const at::Tensor& cos, const at::Tensor& sin, bool is_interleaved) {
  const int64_t batch = qkv.size(0), length = qkv.size(1), total = qkv.size(2), head_dim = qkv.size(3);
  const int64_t half = cos.size(1);
  if (!has_loops(qkv)) {
    const at::Tensor rotated_part = qkv.narrow(2, 0, heads).narrow(3, 0, 2 * half);
    const at::Tensor pairs = is_interleaved ? rotated_part.unflatten(3, {half, 2}).transpose(3, 4)
                                            : rotated_part.unflatten(3, {2, half});  // [B, T, heads, 2, half]
    const at::Tensor c = cos.narrow(0, 0, length).view({1, length, 1, 1, half});
    const at::Tensor s = sin.narrow(0, 0, length).view({1, length, 1, half});
    at::Tensor rotated = pairs * c;
    rotated.select(3, 0).addcmul_(pairs.select(3, 1), s, -1);
    rotated.select(3, 1).addcmul_(pairs.select(3, 0), s);
    pairs.copy_(rotated);
    return;
  }
  const float* cosines = cos.const_data_ptr<float>();
  const float* sines = sin.const_data_ptr<float>();
  with_element_type(qkv, [&]<typename T>(T) {
    T* values = mutable_values_of<T>(qkv);
    at::parallel_for(0, batch * length, grain(heads * head_dim), [&](int64_t begin, int64_t end) {
      for (int64_t token = begin; token < end; ++token) {
        const int64_t position = token % length;
        for (int64_t head = 0; head < heads; ++head) {
          T* channels = values + (token * total + head) * head_dim;
          is_interleaved ? rotate_neighbours(channels, cosines + position * half, sines + position * half, half)
                         : rotate_head(channels, cosines + position * half, sines + position * half, half);
        }
      }
    });
  });
}

at::Tensor act(const at::Tensor& x, Activation activation) {
  switch (activation) {
    case Activation::kSilu:
      return at::silu(x);
    case Activation::kRelu:
      return x.relu();
    case Activation::kGeluTanh:
      return at::gelu(x, "tanh");
  }
  return x;
}

at::Tensor act_mul(const at::Tensor& gate_up, Activation activation) {
  const int64_t width = gate_up.size(-1) / 2;
  if (!has_loops(gate_up) || activation == Activation::kRelu) {  // which no gate of a dense model passes through
    return act(gate_up.narrow(-1, 0, width), activation).mul_(gate_up.narrow(-1, width, width));
  }
  auto sizes = gate_up.sizes().vec();
  sizes.back() = width;
  at::Tensor y = at::empty(sizes, gate_up.options());
  with_element_type(gate_up, [&]<typename T>(T) {
    const T* source = values_of<T>(gate_up);
    T* target = mutable_values_of<T>(y);
    at::parallel_for(0, gate_up.numel() / (2 * width), grain(width), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const T* gate = source + row * 2 * width;
        if (activation == Activation::kSilu) {
          silu_mul_row(gate, gate + width, target + row * width, width);
        } else {
          gelu_mul_row(gate, gate + width, target + row * width, width);
        }
      }
    });
  });
  return y;
}

at::Tensor add_fitted(const at::Tensor& branch, const at::Tensor& x, const at::Tensor& correction) {
  const int64_t width = branch.size(-1), narrow = x.size(-1), common = std::min(width, narrow);
  const bool corrects = correction.defined();
  if (!has_loops(branch) || !is_cpu_fp32(x) || (corrects && correction.scalar_type() != branch.scalar_type())) {
    at::Tensor sum;
    if (branch.scalar_type() != at::kFloat && narrow == width) {
      sum = (x + branch).to(at::kFloat);
    } else {
      sum = branch.scalar_type() == at::kFloat ? branch : branch.to(at::kFloat);
      sum.narrow(-1, 0, common).add_(x.narrow(-1, 0, common));
    }
    if (corrects) sum.narrow(-1, 0, correction.size(-1)).add_(correction);
    return sum;
  }
  const at::Tensor added = branch.contiguous(), passed = x.contiguous();
  const at::Tensor corrected = corrects ? correction.contiguous() : correction;
  at::Tensor sum = added.scalar_type() == at::kFloat ? added : at::empty(added.sizes(), x.options());
  with_element_type(added, [&]<typename T>(T) {
    const T* from = values_of<T>(added);
    const float* beside = passed.const_data_ptr<float>();
    const T* correct = corrects ? values_of<T>(corrected) : nullptr;
    const int64_t corrected_width = corrects ? corrected.size(-1) : 0;
    float* target = sum.mutable_data_ptr<float>();
    at::parallel_for(0, added.numel() / width, grain(width), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        residual_row(from + row * width, beside + row * narrow, corrects ? correct + row * corrected_width : correct,
                     target + row * width, width, common, corrected_width);
      }
    });
  });
  return sum;
}

bool all_finite(const at::Tensor& values) {
  if (!values.device().is_cpu() || !values.is_contiguous()) return values.isfinite().all().item<bool>();
  switch (values.scalar_type()) {
    case at::kFloat:
      return no_exponent_is_full<uint32_t>(values, 0x7F800000U);
    case at::kBFloat16:
      return no_exponent_is_full<uint16_t>(values, 0x7F80U);
    case at::kHalf:
      return no_exponent_is_full<uint16_t>(values, 0x7C00U);
    default:
      return values.isfinite().all().item<bool>();
  }
}

void soft_cap_(at::Tensor& x, double cap) {
  if (cap != 0) x.div_(cap).tanh_().mul_(cap);
}

at::Tensor logsumexp_rows(const at::Tensor& logits) {
  const bool bf16 = logits.scalar_type() == at::kBFloat16;
  if (!logits.device().is_cpu() || !(bf16 || logits.scalar_type() == at::kFloat)) {
    return at::logsumexp(logits.to(at::kFloat), {-1}).to(at::kDouble);
  }
  const int64_t rows = logits.size(0), width = logits.size(1);
  at::Tensor result = at::empty({rows}, logits.options().dtype(at::kDouble));
  const at::Tensor contiguous = logits.contiguous();
  const void* source = contiguous.const_data_ptr();
  double* target = result.mutable_data_ptr<double>();
  at::parallel_for(0, rows, grain(width), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      target[row] = bf16 ? logsumexp_row_bf16(static_cast<const uint16_t*>(source) + row * width, width)
                         : logsumexp_row_fp32(static_cast<const float*>(source) + row * width, width);
    }
  });
  return result;
}

}  // namespace dynslice::kernels
