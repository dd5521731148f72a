#include "slice/refit.h"

#include "aten.h"
#include "dynslice/support/progress.h"
#include "dynslice/tensor/kernels.h"

namespace dynslice {

void advance(LayerStep& step, const HalfLayer& half, const DecoderLayer& layer, ResidualStream& stream) {
  step.transform(
      stream, [&](const at::Tensor& x) { return add_residual(half_branch(half, layer, step.context, x), x, {}); }, 2);
}

at::Tensor weightless_norm(const LayerWalk& walk, const at::Tensor& x) {
  return kernels::rms_norm(x, {}, walk.config().hidden_size, walk.config().rms_norm_eps, at::kFloat);
}

InnerMoment measure_readings(const LayerWalk& walk, const at::Tensor& basis, const StreamPair& streams) {
  InnerMoment moment(streams.in, walk.config().hidden_size, /*by_norm=*/false, walk.options().device);
  const at::Tensor back = basis.to(at::kFloat);
  visit_both(streams.sliced, streams.dense, [&](const at::Tensor& y, const at::Tensor& x) {
    check_interrupt();
    const at::Tensor reads = weightless_norm(walk, pass(streams.way, y, streams.in));
    moment.add(reads, weightless_norm(walk, x) - kernels::linear(reads, back, {}), {});
  });
  return moment;
}

at::Tensor reading_basis(const LayerWalk& walk, const RotationRefitOptions& options, const at::Tensor& basis,
                         const StreamPair& streams, const std::string& where) {
  if (options.refit != RotationRefit::kAll) return basis;
  return basis + measure_readings(walk, basis, streams).solve(options.ridge, where).t();
}

void refit_writer(const LayerWalk& walk, const RotationRefitOptions& options, const LayerContext& context,
                  const HalfLayer& half, DecoderLayer& layer, const StreamPair& streams, const Shortcut& residual,
                  const at::Tensor& coordinates, const std::string& where) {
  const DecoderLayer now = with_dtype(layer, walk.options().dtype);
  const Linear& writes = now.*half.writes;
  const at::Tensor turned = coordinates.t().to(at::kFloat).contiguous();
  InnerMoment moment(writes.weight.size(1), turned.size(0), /*by_norm=*/true, walk.options().device);
  visit_both(streams.sliced, streams.dense, [&](const at::Tensor& y, const at::Tensor& ahead) {
    check_interrupt();
    const at::Tensor x = pass(streams.way, y, streams.in);
    const at::Tensor z = half_inner(half, now, context, x);
    const at::Tensor branch = kernels::linear(z, writes.weight, writes.bias) * layer.branch_scale;
    const at::Tensor leaving = add_residual(branch, x, residual);
    moment.add(z, kernels::linear(ahead, turned, {}) - leaving, x);
  });
  Linear& refitted = layer.*half.writes;
  const double share = options.error_share / layer.branch_scale;
  refitted.weight = refitted.weight + moment.solve(options.ridge, where).mul_(share).t().to(at::kFloat);
}

}  // namespace dynslice
