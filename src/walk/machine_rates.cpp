
#include <algorithm>
#include <chrono>
#include <cmath>

#include "aten.h"
#include "dynslice/tensor/kernels.h"
#include "dynslice/tensor/random.h"
#include "dynslice/walk/memory_plan.h"

namespace dynslice {
namespace {

using Clock = std::chrono::steady_clock;

// Calls `fn` for about `seconds`, once at least after a first call that warms up. Calls a second, by the quickest of
// them: what else the machine does at the moment says nothing about the run.
template <typename Fn>
double calls_per_second(double seconds, const Fn& fn) {
  fn();
  double quickest = 1e9, spent = 0;
  do {
    const auto start = Clock::now();
    fn();
    const double took = std::chrono::duration<double>(Clock::now() - start).count();
    quickest = std::min(quickest, took);
    spent += took;
  } while (spent < seconds);
  return 1 / std::max(quickest, 1e-9);
}

}  // namespace

MachineRates measure_rates(const ModelConfig& config, const ComputeOptions& compute) {
  constexpr double kSeconds = 0.15;
  constexpr int64_t kRows = 256;
  const LayerShape& shape = config.layers.front();
  const int64_t d = std::min<int64_t>(config.hidden_size, 4096),
                inner = std::min<int64_t>(shape.intermediate_size, 4096);
  const auto fp32 = at::TensorOptions().dtype(at::kFloat).device(compute.device);
  const at::Generator random = seeded_generator(compute.device, 0);
  const at::Tensor x = at::rand({kRows, d}, random, fp32), weight = at::rand({inner, d}, random, fp32);
  const double product = 2.0 * kRows * static_cast<double>(d) * static_cast<double>(inner);
  const auto wait = [](const at::Tensor& y) { y.flatten()[0].item(); };  // a device works on its own
  MachineRates rates;
  const at::Tensor low_x = x.to(compute.dtype), low_weight = weight.to(compute.dtype);
  rates.forward_flops = product * calls_per_second(kSeconds, [&] { wait(kernels::linear(low_x, low_weight, {})); });
  rates.rotation_flops = product * calls_per_second(kSeconds, [&] { wait(kernels::matmul(x, weight.t())); });
  const at::Tensor rows = at::rand({kRows, std::min<int64_t>(d, 1024)}, random, fp32);
  at::Tensor moment = at::zeros({rows.size(1), rows.size(1)}, fp32.dtype(at::kDouble));
  rates.moment_flops = 2.0 * static_cast<double>(rows.numel()) * static_cast<double>(rows.size(1)) *
                       calls_per_second(kSeconds, [&] { wait(moment.add_(kernels::matmul(rows.t(), rows))); });
  const int64_t n = std::min<int64_t>(d, 256);
  const at::Tensor square = moment.narrow(0, 0, std::min(n, moment.size(0))).narrow(1, 0, std::min(n, moment.size(0)));
  const at::Tensor symmetric = square + square.t();
  rates.eigen_cubes = std::pow(static_cast<double>(symmetric.size(0)), 3) *
                      calls_per_second(kSeconds, [&] { wait(std::get<0>(at::linalg_eigh(symmetric))); });
  const at::Tensor large = at::ones({int64_t{32} << 20}, fp32);
  rates.bytes_streamed = static_cast<double>(large.nbytes()) * calls_per_second(kSeconds, [&] { wait(large.sum()); });
  rates.bytes_read = 1e9;  // a disk of its time; from the page cache it is faster than that
  return rates;
}

}  // namespace dynslice
