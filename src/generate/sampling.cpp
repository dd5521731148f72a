#include "dynslice/generate/sampling.h"

#include <algorithm>
#include <cmath>

#include "aten.h"
#include "dynslice/support/error.h"

namespace dynslice {
namespace {

void check_numbers(std::span<const float> logits) {
  const auto bad =
      std::find_if(logits.begin(), logits.end(), [](float value) { return std::isnan(value) || value == INFINITY; });
  if (bad == logits.end()) return;
  throw_error(ErrorKind::kBadInput, "the model's logit of token ", bad - logits.begin(), " is ", *bad,
              ": its weights, or --dtype, cannot be computed with");
}

int32_t likeliest(std::span<const float> logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

bool is_likelier(const Candidate& a, const Candidate& b) {
  return a.probability > b.probability || (a.probability == b.probability && a.id < b.id);
}

// The fewest of the likeliest whose weights reach `share` of `total`; the rest goes.
void keep_top_p(std::vector<Candidate>& all, double share, double total) {
  double sum = 0;
  size_t kept = 0;
  // Sorting a little further at a time: mostly a few tokens of a large vocabulary are enough.
  for (size_t sorted = 0; kept < all.size();) {
    const size_t next = std::min(all.size(), std::max<size_t>(64, 8 * sorted));
    std::partial_sort(all.begin() + static_cast<int64_t>(sorted), all.begin() + static_cast<int64_t>(next), all.end(),
                      is_likelier);
    for (sorted = next; kept < sorted;) {
      sum += all[kept++].probability;
      if (sum >= share * total) {
        all.resize(kept);
        return;
      }
    }
  }
}

double sum_of(const std::vector<Candidate>& all) {
  double sum = 0;
  for (const Candidate& one : all) sum += one.probability;
  return sum;
}

}  // namespace

void check_sampling(const SamplingOptions& options) {
  if (!(options.temperature >= 0) || !std::isfinite(options.temperature)) {
    throw_error(ErrorKind::kUsage, "a temperature of ", options.temperature, ": must be 0 or more");
  }
  if (options.top_k < 0) throw_error(ErrorKind::kUsage, "top-k of ", options.top_k, ": must be 0 (all tokens) or more");
  if (!(options.top_p > 0 && options.top_p <= 1)) {
    throw_error(ErrorKind::kUsage, "top-p of ", options.top_p, ": must be above 0, and 1 at the most");
  }
}

std::vector<Candidate> candidates(std::span<const float> logits, const SamplingOptions& options) {
  check_numbers(logits);
  std::vector<Candidate> all(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) all[i] = {static_cast<int32_t>(i), logits[i]};
  if (options.top_k > 0 && options.top_k < static_cast<int64_t>(all.size())) {
    std::nth_element(all.begin(), all.begin() + options.top_k - 1, all.end(), is_likelier);
    all.resize(static_cast<size_t>(options.top_k));
    std::sort(all.begin(), all.end(), is_likelier);  // one order, whatever nth_element leaves
  }
  const double largest = logits[static_cast<size_t>(likeliest(logits))];
  for (Candidate& one : all) one.probability = std::exp((one.probability - largest) / options.temperature);
  if (options.top_p < 1) keep_top_p(all, options.top_p, sum_of(all));
  const double total = sum_of(all);
  for (Candidate& one : all) one.probability /= total;
  return all;
}

Sampler::Sampler(const SamplingOptions& options) : options_(options), random_(options.seed) { check_sampling(options); }

int32_t Sampler::next(const at::Tensor& logits) {
  const at::Tensor on_cpu = logits.to(at::kCPU, at::kFloat).contiguous();
  const std::span<const float> values(on_cpu.const_data_ptr<float>(), static_cast<size_t>(on_cpu.numel()));
  if (options_.temperature == 0) {
    check_numbers(values);
    return likeliest(values);
  }
  const std::vector<Candidate> all = candidates(values, options_);
  double left = static_cast<double>(random_() >> 11) * 0x1p-53;  // [0, 1), the same from every standard library
  for (const Candidate& one : all) {
    left -= one.probability;
    if (left < 0) return one.id;
  }
  return all.back().id;  // sums of rounded numbers may fall short of 1
}

}  // namespace dynslice
