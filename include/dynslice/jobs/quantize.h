// Quantizing a model, and measuring what that costs, as `dynslice quantize` does it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "dynslice/jobs/outcome.h"
#include "dynslice/jobs/prepare.h"
#include "dynslice/jobs/requests.h"
#include "dynslice/jobs/sizes.h"
#include "dynslice/quantize/quant_plan.h"
#include "dynslice/support/json.h"
#include "dynslice/support/progress.h"

namespace dynslice {

// Bits of a weight on average.
struct AverageBits {
  double codes = 0;        // of the layers' matrices
  double with_scales = 0;  // the same, scales and zero points included
  double of_all = 0;       // of all parameters, embedding, head and norms included
};

// The layers whose matrices have so many bits, and how these are stored: "Q4_K", "Q5_0".
struct QuantLevel {
  int bits = 0;
  std::vector<int64_t> layers;
  std::vector<std::string> formats;
};

struct QuantizedModel {
  QuantPlan plan;
  std::vector<QuantLevel> levels;  // those that some layer has, falling
  AverageBits average_bits;
  SizeChange source;         // at the output's precision, as if nothing were quantized
  uint64_t bytes_after = 0;  // of the tensors
  OrderedJson record;        // dynslice.json, or the record in the GGUF file
  std::filesystem::path output;
  double seconds = 0;  // those of runs that were resumed included
  PeakMemory peak;
};

// What more and more layers at the lower bits cost, for one order of the layers.
struct SweepCurve {
  std::string name;
  std::string order;  // as --order has it
  uint64_t seed = 0;
  std::vector<double> shares = {}, perplexities = {};  // of every point
  std::vector<std::vector<double>> accuracies = {};    // of every point and task

  // The largest share up to which no measured perplexity was more than 5 % above the first.
  [[nodiscard]] double share_within_tolerance() const;
};

struct QuantSweep {
  std::vector<int> levels;  // bits: the higher, the lower
  std::vector<std::string> tasks;
  std::vector<SweepCurve> curves;
  OrderedJson record;  // as it was written to `output`
  std::filesystem::path output, picture;
  double seconds = 0;  // those of runs that were resumed included
  PeakMemory peak;
};

using QuantizeResult = std::variant<QuantizedModel, QuantSweep>;
// As --json prints it.
[[nodiscard]] OrderedJson to_json(const QuantizeResult& result);

// Writes the quantized checkpoint or GGUF file; with `sweep` its JSON file and pictures instead. Throws kUsage when
// levels, formats, order and the model do not go together, or when an output may not be written; and what reading model
// and text throws.
[[nodiscard]] Outcome<QuantizeResult> run(const QuantizeRequest& request, ProgressSink& progress);

}  // namespace dynslice
