#include "modular/writer.h"

#include "aten.h"
#include "dynslice/tensor/kernels.h"

namespace dynslice {
namespace {

// A norm's weight that is next to nothing tells next to nothing of its row of the matrix.
constexpr double kLeastWeight = 1e-3;

}  // namespace

at::Tensor seen_writer(const HalfLayer& half, const DecoderLayer& layer) {
  const at::Tensor& weight = (layer.*half.writes).weight;
  const at::Tensor& norm = layer.*half.branch_norm;
  if (norm.defined()) return scaled(half, layer, weight.to(at::kFloat).t() * (norm * layer.branch_scale));
  return layer.branch_scale == 1 ? weight.t() : weight.to(at::kFloat).t() * layer.branch_scale;
}

at::Tensor written_by(const HalfLayer& half, const DecoderLayer& layer, const at::Tensor& seen) {
  const at::Tensor rows = seen / scaled(half, layer, at::scalar_tensor(layer.branch_scale, seen.options()));
  const at::Tensor& norm = layer.*half.branch_norm;
  if (!norm.defined()) return rows.t().to(at::kFloat).contiguous();
  const at::Tensor sign = at::where(norm.lt(0), -at::ones_like(norm), at::ones_like(norm));
  return (rows / (norm.abs().clamp_min(kLeastWeight) * sign)).t().to(at::kFloat).contiguous();
}

at::Tensor attainable(const HalfLayer& half, const DecoderLayer& layer, const at::Tensor& change) {
  const at::Tensor& norm = layer.*half.branch_norm;
  if (!norm.defined()) return change;
  const at::Tensor square = norm.to(at::kDouble).square();
  return change * (square / (square + square.mean()));
}

at::Tensor seen_inside(const HalfLayer& half, const DecoderLayer& layer, const LayerContext& context,
                       const at::Tensor& inside) {
  if (!(layer.*half.branch_norm).defined()) return inside;
  const Linear& writes = layer.*half.writes;
  const at::Tensor branch = kernels::linear(inside, writes.weight, writes.bias).to(at::kFloat);
  const at::Tensor mean_square = branch.square().sum(-1, /*keepdim=*/true) / static_cast<double>(context.hidden_size);
  return inside.to(at::kFloat) * at::rsqrt(mean_square + context.rms_norm_eps);
}

}  // namespace dynslice
