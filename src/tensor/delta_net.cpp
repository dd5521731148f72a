#include "dynslice/tensor/delta_net.h"

#include <ATen/ops/linalg_solve_triangular.h>

#include <algorithm>
#include <vector>

#include "aten.h"

namespace dynslice::kernels {
namespace {

constexpr int64_t kChunk = 64;
constexpr double kEps = 1e-6;

// Head by head, of length 1, keys for each of the value heads that share them: [B, value_heads, T, dk].
at::Tensor unit_heads(const at::Tensor& x, int64_t value_heads) {
  const at::Tensor unit = x * at::rsqrt((x * x).sum(-1, /*keepdim=*/true) + kEps);
  return unit.repeat_interleave(value_heads / x.size(2), 2).transpose(1, 2);
}

// One token, without a chunk's detours. All [B, value_heads, 1, ...].
at::Tensor step(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& decay,
                const at::Tensor& rate, at::Tensor& memory) {
  const at::Tensor kept = memory * decay.exp().unsqueeze(-1);
  const at::Tensor error = (v - at::matmul(k, kept)) * rate.unsqueeze(-1);
  memory = kept + at::matmul(k.transpose(-1, -2), error);
  return at::matmul(q, memory);
}

// Tokens of one chunk [B, value_heads, C, ...]: their corrections solve a unit triangular system, as each of them sees
// those before.
at::Tensor chunk_of(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& decay,
                    const at::Tensor& rate, at::Tensor& memory) {
  const int64_t length = q.size(2);
  const at::Tensor sum = decay.cumsum(-1), since_start = sum.exp().unsqueeze(-1);
  const at::Tensor later = at::ones({length, length}, q.options().dtype(at::kBool)).triu(1);
  const at::Tensor between = (sum.unsqueeze(-1) - sum.unsqueeze(-2)).masked_fill(later, -INFINITY).exp();
  const at::Tensor weighted = k * rate.unsqueeze(-1);
  const at::Tensor system = at::matmul(weighted, k.transpose(-1, -2)) * between;
  // What tokens would write if they did not see each other: their values, less what the memory says already.
  const at::Tensor alone = v * rate.unsqueeze(-1) - at::matmul(weighted * since_start, memory);
  const at::Tensor written = at::linalg_solve_triangular(system, alone, /*upper=*/false, /*left=*/true,
                                                         /*unitriangular=*/true);
  const at::Tensor read =
      at::matmul(q * since_start, memory) + at::matmul(at::matmul(q, k.transpose(-1, -2)) * between, written);
  const at::Tensor to_end = (sum.narrow(-1, length - 1, 1) - sum).exp().unsqueeze(-1);
  memory = memory * since_start.narrow(-2, length - 1, 1) + at::matmul((k * to_end).transpose(-1, -2), written);
  return read;
}

}  // namespace

at::Tensor causal_convolution(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& before,
                              at::Tensor* after) {
  const int64_t length = x.size(1), channels = x.size(2), taps = weight.size(2);
  const at::Tensor wide = x.to(at::kFloat);
  const at::Tensor head = before.defined() ? before : at::zeros({x.size(0), taps - 1, channels}, wide.options());
  const at::Tensor all = at::cat({head, wide}, 1);
  at::Tensor sum;
  for (int64_t tap = 0; tap < taps; ++tap) {
    const at::Tensor term = all.narrow(1, tap, length) * weight.select(2, tap).select(1, 0);
    sum = sum.defined() ? sum + term : term;
  }
  if (after != nullptr) *after = all.narrow(1, length, taps - 1).clone();
  return sum;
}

at::Tensor gated_delta_rule(const DeltaTokens& tokens, at::Tensor& memory) {
  const int64_t length = tokens.values.size(1), heads = tokens.values.size(2), dk = tokens.keys.size(3);
  const at::Tensor q = unit_heads(tokens.queries, heads) * (1 / std::sqrt(static_cast<double>(dk)));
  const at::Tensor k = unit_heads(tokens.keys, heads), v = tokens.values.transpose(1, 2);
  const at::Tensor decay = tokens.decay.transpose(1, 2), rate = tokens.rate.transpose(1, 2);
  if (!memory.defined()) memory = at::zeros({v.size(0), heads, dk, v.size(3)}, v.options());
  std::vector<at::Tensor> parts;
  for (int64_t first = 0; first < length; first += kChunk) {
    const int64_t count = std::min(kChunk, length - first);
    const auto part = [&](const at::Tensor& x) { return x.narrow(2, first, count); };
    const auto rule = count == 1 ? step : chunk_of;
    parts.push_back(rule(part(q), part(k), part(v), part(decay), part(rate), memory));
  }
  return at::cat(parts, 2).transpose(1, 2);
}

}  // namespace dynslice::kernels
