#include "dynslice/jobs/bench.h"

#include <string>
#include <vector>

#include "cli/show/outcome.h"
#include "cli/verbs/verbs.h"
#include "dynslice/jobs/inputs.h"
#include "dynslice/tensor/dtype.h"

namespace dynslice::cli {
namespace {

void print_products(std::ostream& out, const BenchResult& result) {
  std::vector<std::vector<std::string>> rows;
  for (const auto& [dtype, peak] : result.products) rows.push_back({dtype, format_fixed(peak.gflops, 0), peak.library});
  print_table(out, {"product", "GFLOP/s", "library"}, rows);
  out << result.threads << " thread(s).\n";
}

// "Ratio of the first to the second: prefill 1.20, decode 1.31.", or a line for every model before --against.
void print_ratios(std::ostream& out, const BenchResult& result) {
  if (!result.against) return;
  const Speed& against = result.against->speed;
  for (const BenchedModel& model : result.models) {
    const Speed& speed = model.speed;
    out << "Ratio of "
        << (result.models.size() == 1 ? "the first to the second" : model.path + " to " + result.against->path)
        << ": prefill " << format_fixed(speed.prefill_tokens_per_second / against.prefill_tokens_per_second, 2);
    if (result.has_decoded()) {
      out << ", decode " << format_fixed(speed.decode_tokens_per_second / against.decode_tokens_per_second, 2);
    }
    out << ".\n";
  }
}

std::vector<std::string> speed_row(const BenchedModel& model) {
  const Speed& speed = model.speed;
  const auto latency = [&](double q) {
    return speed.token_seconds.empty() ? "-" : format_fixed(1000 * quantile(speed.token_seconds, q), 2);
  };
  return {model.path,
          format_fixed(speed.prefill_tokens_per_second, 1),
          format_fixed(speed.decode_tokens_per_second, 1),
          latency(0.5),
          latency(0.95),
          format_bytes(model.disk_bytes),
          format_bytes(static_cast<uint64_t>(model.weight_bytes)),
          format_bytes(static_cast<uint64_t>(speed.cache_bytes)),
          format_count(model.cost.parameters)};
}

void print_speeds(std::ostream& out, const BenchResult& result) {
  std::vector<std::vector<std::string>> rows;
  for (const BenchedModel& model : result.models) rows.push_back(speed_row(model));
  if (result.against) rows.push_back(speed_row(*result.against));
  print_table(
      out,
      {"model", "prefill tokens/s", "decode tokens/s", "p50 ms", "p95 ms", "on disk", "weights", "cache", "parameters"},
      rows);
  print_ratios(out, result);
  out << "Medians of " << result.measured.repeats << " repeats after one to warm up; " << result.measured.batch
      << " sequence(s), prompts of " << result.measured.prompt_tokens << " tokens, " << result.measured.decode_tokens
      << " decoded; " << dtype_name(result.dtype) << " on " << result.device.str() << ", " << result.threads
      << " thread(s); peak memory " << format_bytes(result.peak.rss) << (rows.size() > 1 ? " with all models" : "")
      << ".\n";
}

}  // namespace

void run(const BenchRequest& request, TerminalProgress& progress, std::ostream& out) {
  present(out, dynslice::run(request, progress), request.common, [&](const BenchResult& result) {
    if (result.products.empty()) {
      print_speeds(out, result);
    } else {
      print_products(out, result);
    }
  });
}

}  // namespace dynslice::cli
