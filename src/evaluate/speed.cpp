#include "dynslice/evaluate/speed.h"

#include <ATen/detail/CUDAHooksInterface.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <tuple>

#include "aten.h"
#include "dynslice/evaluate/statistics.h"
#include "dynslice/support/error.h"
#include "dynslice/tensor/kernels.h"

namespace dynslice {
namespace {

class Stopwatch {
 public:
  explicit Stopwatch(at::Device device) : device_(device), start_(now()) {}
  double seconds() const { return std::chrono::duration<double>(now() - start_).count(); }

 private:
  std::chrono::steady_clock::time_point now() const {
    if (device_.is_cuda()) at::detail::getCUDAHooks().deviceSynchronize(device_.index() < 0 ? 0 : device_.index());
    return std::chrono::steady_clock::now();
  }

  at::Device device_;
  std::chrono::steady_clock::time_point start_;
};

// Ids [B, T] that every vocabulary of at least `vocab_size` entries has; the same at every call.
at::Tensor random_prompt(int64_t batch, int64_t length, int64_t vocab_size) {
  at::Tensor ids = at::empty({batch, length}, at::kLong);
  int64_t* values = ids.mutable_data_ptr<int64_t>();
  uint64_t state = 1;
  for (int64_t i = 0; i < batch * length; ++i) {
    state = state * 6364136223846793005U + 1442695040888963407U;
    values[i] = static_cast<int64_t>((state >> 33) % static_cast<uint64_t>(vocab_size));
  }
  return ids;
}

// The likeliest next ids [B, 1].
at::Tensor next_ids(const ResidentModel& model, const at::Tensor& stream) {
  return model.logits(stream.narrow(1, stream.size(1) - 1, 1)).argmax(-1).cpu();
}

void run_once(const ResidentModel& model, const at::Tensor& prompt, const SpeedOptions& options, KeyValueCache& cache,
              Speed* speed) {
  const at::Device device = model.options().device;
  cache.rewind();
  const Stopwatch prefill(device);
  at::Tensor ids = next_ids(model, model.forward(prompt, cache));
  const double prefill_seconds = prefill.seconds();
  double decode_seconds = 0;
  for (int64_t token = 0; token < options.decode_tokens; ++token) {
    check_interrupt();
    const Stopwatch one(device);
    ids = next_ids(model, model.forward(ids, cache));
    const double seconds = one.seconds();
    decode_seconds += seconds;
    if (speed != nullptr) speed->token_seconds.push_back(seconds);
  }
  if (speed == nullptr) return;
  speed->prefill_seconds.push_back(prefill_seconds);
  if (options.decode_tokens > 0) speed->decode_seconds.push_back(decode_seconds);
}

double tokens_per_second(int64_t tokens, const std::vector<double>& seconds) {
  return seconds.empty() ? 0 : static_cast<double>(tokens) / quantile(seconds, 0.5);
}

}  // namespace

double quantile(std::vector<double> values, double q) {
  std::sort(values.begin(), values.end());
  return quantile_of_sorted(values, q);
}

std::vector<Speed> measure_speed(const std::vector<const ResidentModel*>& models, const SpeedOptions& options,
                                 ProgressSink& progress) {
  std::vector<Speed> speeds(models.size());
  std::vector<KeyValueCache> caches;
  int64_t vocab_size = models.front()->config().vocab_size;
  for (size_t m = 0; m < models.size(); ++m) {
    caches.push_back(models[m]->make_cache(options.batch, options.prompt_tokens + options.decode_tokens));
    speeds[m].cache_bytes = caches.back().bytes();
    vocab_size = std::min(vocab_size, models[m]->config().vocab_size);
  }
  const at::Tensor prompt = random_prompt(options.batch, options.prompt_tokens, vocab_size);
  const int64_t tokens = options.batch * (options.prompt_tokens + options.decode_tokens);
  const auto turns = static_cast<int64_t>(models.size()) * (options.repeats + 1);
  ProgressTask task(progress, "Measuring", tokens * turns, "tokens");
  for (int64_t repeat = -1; repeat < options.repeats; ++repeat) {  // -1 warms up
    for (size_t m = 0; m < models.size(); ++m) {
      run_once(*models[m], prompt, options, caches[m], repeat < 0 ? nullptr : &speeds[m]);
      task.advance(tokens);
    }
  }
  for (Speed& speed : speeds) {
    speed.prefill_tokens_per_second = tokens_per_second(options.batch * options.prompt_tokens, speed.prefill_seconds);
    speed.decode_tokens_per_second = tokens_per_second(options.batch * options.decode_tokens, speed.decode_seconds);
  }
  return speeds;
}

GemmPeak measure_gemm_peak(at::ScalarType dtype) {
  const int64_t n = dtype == at::kDouble ? 1024 : 2048;
  const auto options = at::TensorOptions().dtype(dtype);
  const at::Tensor a = at::ones({n, n}, options), b = at::ones({n, n}, options);
  const double operations = 2 * std::pow(static_cast<double>(n), 3);
  GemmPeak peak;
  const auto race = [&](const std::string& library, const auto& multiply) {
    for (int repeat = 0; repeat < 5; ++repeat) {
      const Stopwatch watch(at::kCPU);
      multiply();
      const double gflops = operations / watch.seconds() / 1e9;
      if (repeat > 0 && gflops > peak.gflops) peak = {gflops, library};  // the first one loads code and pages
    }
  };
  // LibTorch sends bf16 products to oneDNN by itself, fp32 and fp64 ones to MKL; kernels::linear may choose otherwise.
  // On a processor without bf16 neither is tried, which takes minutes.
  const bool by_fp32 = !kernels::multiplies(dtype);
  if (by_fp32)
    race("fp32", [&] { std::ignore = kernels::linear(a, b, {}); });
  else
    race(dtype == at::kBFloat16 ? "oneDNN" : "MKL", [&] { at::mm(a, b); });
  if (dtype == at::kFloat && kernels::uses_onednn()) race("oneDNN", [&] { std::ignore = kernels::linear(a, b, {}); });
  return peak;
}

}  // namespace dynslice
