// How fast a model reads a prompt and writes tokens, and how fast the machine multiplies matrices at all.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "dynslice/support/progress.h"
#include "dynslice/walk/resident_model.h"

namespace dynslice {

struct SpeedOptions {
  int64_t prompt_tokens = 512;
  int64_t decode_tokens = 64;  // after the prompt, one at a time, each the likeliest after those before it
  int64_t repeats = 5;         // that count; one more comes before them and does not
  int64_t batch = 1;           // sequences side by side
};

struct Speed {
  std::vector<double> prefill_seconds;   // one a repeat: the prompts through all layers, and the last tokens' logits
  std::vector<double> decode_seconds;    // one a repeat: all decoded tokens
  std::vector<double> token_seconds;     // of every decoded token (of the whole batch) of every repeat
  double prefill_tokens_per_second = 0;  // of all sequences together, from the median repeat
  double decode_tokens_per_second = 0;   // likewise
  int64_t cache_bytes = 0;
};

// The value below which a share `q` of the values lie, between neighbours by linear interpolation; `values` not empty.
[[nodiscard]] double quantile(std::vector<double> values, double q);

// Measures the models in turns, repeat by repeat, so that what else the machine does meets all of them alike. Prompts
// are the same random ids for every model. Throws kUsage when prompt and decoded tokens exceed a model's maximum.
[[nodiscard]] std::vector<Speed> measure_speed(const std::vector<const ResidentModel*>& models,
                                               const SpeedOptions& options, ProgressSink& progress);

// The most that this machine's CPU reaches in a matrix product, with all threads that LibTorch may use.
struct GemmPeak {
  double gflops = 0;    // 1e9 multiplications and additions a second
  std::string library;  // whose product it is: "MKL" or "oneDNN"; "fp32" where bf16 is multiplied by way of it
};

// The best of some products of square matrices of this dtype (fp32, bf16 or fp64), by every library that LibTorch
// has for it; about half a second.
[[nodiscard]] GemmPeak measure_gemm_peak(at::ScalarType dtype);

}  // namespace dynslice
