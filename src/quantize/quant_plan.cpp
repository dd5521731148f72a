#include "dynslice/quantize/quant_plan.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "dynslice/model/tensor_layout.h"
#include "dynslice/support/error.h"

namespace dynslice {
namespace {

constexpr const char* kKind = "dynslice.quant_plan";

}  // namespace

OrderedJson to_json(const QuantPlan& plan) {
  OrderedJson json;
  json["kind"] = kKind;
  json["order"] = plan.order;
  json["bits"] = plan.bits;
  json["provenance"] = plan.provenance;
  return json;
}

QuantPlan read_quant_plan(const std::filesystem::path& path, const ModelConfig& config) {
  return parse_quant_plan(parse_json_file(path), path.string(), config);
}

QuantPlan parse_quant_plan(const Json& json, const std::string& where, const ModelConfig& config) {
  const JsonReader reader(json, where);
  if (reader.string("kind") != kKind) reader.fail("kind", std::string("\"") + kKind + "\"");
  QuantPlan plan;
  plan.order = reader.has("order") ? reader.string("order") : "";
  const Json bits = reader.has("bits") ? json["bits"] : Json();
  if (!bits.is_array()) reader.fail("bits", "a list of whole numbers from 2 to 8, one a layer");
  for (const Json& value : bits) {
    if (!value.is_number_integer() || value.get<int64_t>() < 2 || value.get<int64_t>() > 8)
      reader.fail("bits", "a list of whole numbers from 2 to 8, one a layer");
    plan.bits.push_back(value.get<int>());
  }
  if (static_cast<int64_t>(plan.bits.size()) != config.num_layers()) {
    throw_error(ErrorKind::kBadInput, where, ": is a plan for ", plan.bits.size(), " layers; this model has ",
                config.num_layers());
  }
  if (reader.has("provenance")) plan.provenance = json["provenance"];
  return plan;
}

int64_t layer_weights(const ModelConfig& config, int64_t layer) {
  int64_t weights = 0;
  for (const OutputTensor& weight : linear_weights(config, layer, at::kFloat))
    weights += weight.shape[0] * weight.shape[1];
  return weights;
}

double average_bits(const ModelConfig& config, const std::vector<int>& bits) {
  double sum = 0, weights = 0;
  for (int64_t layer = 0; layer < config.num_layers(); ++layer) {
    const auto count = static_cast<double>(layer_weights(config, layer));
    sum += count * bits[static_cast<size_t>(layer)];
    weights += count;
  }
  return sum / weights;
}

std::vector<int> bits_by_share(const std::vector<int64_t>& order, const std::vector<int>& levels,
                               const std::vector<double>& shares) {
  const auto layers = static_cast<double>(order.size());
  std::vector<int> bits(order.size(), levels.front());
  // From the lowest level up, so that each boundary is rounded once: the least important layers take the fewest bits.
  double share = 0;
  size_t next = 0;
  for (size_t level = levels.size() - 1; level > 0; --level) {
    share += shares[level - 1];
    const auto end = static_cast<size_t>(std::llround(std::min(1.0, share) * layers));
    for (; next < end; ++next) bits[static_cast<size_t>(order[next])] = levels[level];
  }
  if (share > 1 + 1e-9) throw_error(ErrorKind::kUsage, "shares of layers that are more than all together");
  return bits;
}

std::vector<int> bits_by_average(const ModelConfig& config, const std::vector<int64_t>& order,
                                 const std::vector<int>& levels, double average) {
  if (average > levels.front() || average < levels.back()) {
    throw_error(ErrorKind::kUsage, "an average of ", average, " bits does not lie between ", levels.back(), " and ",
                levels.front());
  }
  size_t low = 0;
  while (low + 1 < levels.size() && levels[low] > average) ++low;
  const int high_bits = levels[low > 0 ? low - 1 : 0];
  std::vector<int> bits(order.size(), levels[low] == average ? levels[low] : high_bits);
  for (const int64_t layer : order) {
    if (average_bits(config, bits) <= average) break;
    bits[static_cast<size_t>(layer)] = levels[low];
  }
  return bits;
}

std::vector<int64_t> random_order(int64_t layers, uint64_t seed) {
  // Fisher and Yates by a generator whose numbers are the same everywhere (SplitMix64), unlike std::shuffle's.
  std::vector<int64_t> order(static_cast<size_t>(layers));
  std::iota(order.begin(), order.end(), 0);
  uint64_t state = seed;
  const auto next = [&state] {
    uint64_t z = (state += 0x9e3779b97f4a7c15ULL);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
  };
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[next() % i]);
  return order;
}

}  // namespace dynslice
