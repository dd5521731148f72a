#include "jobs/quantizing.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <map>
#include <numeric>
#include <set>

#include "dynslice/jobs/sizes.h"
#include "dynslice/quantize/gguf_blocks.h"
#include "dynslice/support/error.h"
#include "jobs/ggml_types.h"

namespace dynslice {
namespace {

std::set<int64_t> widths_of(const ModelConfig& config) {
  std::set<int64_t> widths;
  for (int64_t layer = 0; layer < config.num_layers(); ++layer) {
    for (const LinearShape& matrix : linear_shapes(config, layer)) widths.insert(matrix.columns);
  }
  return widths;
}

// The group size of every width: one for the whole model where there is one, else the largest that divides the width;
// 0, the whole row, where none does.
std::map<int64_t, int64_t> automatic_groups(const std::set<int64_t>& widths) {
  // The largest size by which these rows can be divided; 0 where there is none.
  const auto largest = [](const auto& divides) -> int64_t {
    const auto* row = std::ranges::find_if(
        kGroupSizes, [&](const GroupSizeRow& size) { return size.weights > 0 && divides(size.weights); });
    return row == kGroupSizes.end() ? 0 : row->weights;
  };
  const int64_t common = largest(
      [&](int64_t size) { return std::ranges::all_of(widths, [&](int64_t width) { return width % size == 0; }); });
  std::map<int64_t, int64_t> groups;
  for (const int64_t width : widths)
    groups[width] = common > 0 ? common : largest([&](int64_t size) { return width % size == 0; });
  return groups;
}

std::map<int64_t, int64_t> groups_of(const QuantizeRequest& options, const std::set<int64_t>& widths) {
  if (options.group_size == GroupSize::kAuto) return automatic_groups(widths);
  std::map<int64_t, int64_t> groups;
  for (const int64_t width : widths) groups[width] = row_of(options.group_size).weights;
  return groups;
}

constexpr std::array kBlockTypes = {GgmlType::kQ8_0, GgmlType::kQ6_K, GgmlType::kQ5_K, GgmlType::kQ5_1,
                                    GgmlType::kQ5_0, GgmlType::kQ4_K, GgmlType::kQ4_1, GgmlType::kQ4_0,
                                    GgmlType::kQ3_K, GgmlType::kQ2_K};

// The types that the levels stand for, by their bits.
std::map<int, GgmlType> types_of(const QuantizeRequest& options) {
  std::map<int, GgmlType> types = {{8, GgmlType::kQ8_0}, {6, GgmlType::kQ6_K}, {5, GgmlType::kQ5_K},
                                   {4, GgmlType::kQ4_K}, {3, GgmlType::kQ3_K}, {2, GgmlType::kQ2_K}};
  const std::vector<int> levels = levels_of(options);
  if (options.types.empty()) return types;
  if (options.types.size() != levels.size()) {
    throw_error(ErrorKind::kUsage, "--types: takes one type for every level of --bits, ", levels.size(),
                " here; found ", options.types.size());
  }
  for (size_t i = 0; i < levels.size(); ++i) types[levels[i]] = parse_block_type("--types", options.types[i]);
  return types;
}

FormatRule gguf_rule(const Quantizing& in) {
  return [types = types_of(in.options)](int bits, int64_t columns) {
    const auto type = types.find(bits);
    if (type == types.end()) {
      throw_error(ErrorKind::kUsage, "--gguf: ggml has no format of ", bits, " bits; it has 8, 6, 5, 4, 3 and 2");
    }
    return block_format(type->second, bits, columns);
  };
}

std::vector<double> shares_of(const QuantizeRequest& options) {
  const size_t levels = levels_of(options).size();
  if (!options.low_shares.empty()) return options.low_shares;
  return std::vector<double>(levels - 1, 1.0 / static_cast<double>(levels));
}

QuantPlan searched_plan(const Quantizing& in, const FormatRule& rule, const PhaseOf& phase, ProgressSink& progress) {
  const std::vector<int> levels = levels_of(in.options);
  std::vector<int64_t> any(static_cast<size_t>(in.config().num_layers()));
  std::iota(any.begin(), any.end(), 0);
  const double average = in.options.average_bits
                             ? *in.options.average_bits
                             : average_bits(in.config(), bits_by_share(any, levels, shares_of(in.options)));
  const TrialQuantizer quantizer{rule, in.by_gptq() ? in.calibration : nullptr, in.gptq()};
  const LayerWalk walk(in.checkpoint, in.compute, in.held_out->length, progress);
  const SearchResult found =
      search_plan(walk, *in.held_out, quantizer, levels, average, in.options.search_rounds, phase);
  QuantPlan plan;
  plan.bits = found.bits;
  plan.provenance["steps"] = OrderedJson::array();
  for (const SearchStep& step : found.steps)
    plan.provenance["steps"].push_back({{"layer", step.layer}, {"bits", step.bits}, {"loss_rise", step.loss_rise}});
  return plan;
}

// None for what may be a file's name.
std::optional<Metric> metric_named(const std::string& name) {
  try {
    return parse_metric(name);
  } catch (const Error&) {
    return std::nullopt;
  }
}

}  // namespace

Ranking parse_ranking(const std::string& order) {
  Ranking ranking;
  std::error_code error;
  ranking.is_random = order == "random";
  ranking.is_searched = order == "search";
  ranking.is_reversed = order == "reverse";
  if (ranking.is_random || ranking.is_searched) return ranking;
  ranking.metric = metric_named(ranking.is_reversed ? "lim" : order);
  if (!ranking.metric && std::filesystem::is_regular_file(order, error)) {
    ranking.file = order;
    return ranking;
  }
  if (!ranking.metric || ranking.metric->window != 1) {
    throw_error(ErrorKind::kUsage, "--order ", order,
                ": is no file, and not one of lim, zd, lr, bi, angular, cka, search, random, reverse");
  }
  return ranking;
}

at::ScalarType Quantizing::dtype() const { return output_dtype(options.out_dtype, checkpoint); }

std::vector<int> levels_of(const QuantizeRequest& options) {
  return options.bits.empty() ? std::vector<int>{4} : options.bits;
}

bool needs_order(const QuantizeRequest& options) { return options.plan.empty() && levels_of(options).size() > 1; }

void check_levels(const QuantizeRequest& options) {
  const std::vector<int> bits = levels_of(options);
  const size_t levels = bits.size();
  if (levels < 2 && (options.average_bits || !options.low_shares.empty())) {
    throw_error(ErrorKind::kUsage, options.average_bits ? "--avg-bits" : "--low-share",
                " needs two levels or more: --bits 8,4");
  }
  if (!options.low_shares.empty() && options.low_shares.size() != levels - 1) {
    throw_error(ErrorKind::kUsage, "--low-share: takes one share for every level of --bits but the first, ", levels - 1,
                " here; found ", options.low_shares.size());
  }
  // Before any work, what bits_by_share and bits_by_average say behind the scores.
  if (std::accumulate(options.low_shares.begin(), options.low_shares.end(), 0.0) > 1 + 1e-9)
    throw_error(ErrorKind::kUsage, "--low-share: the shares together are more than 100%");
  if (options.average_bits && (*options.average_bits > bits.front() || *options.average_bits < bits.back())) {
    throw_error(ErrorKind::kUsage, "--avg-bits ", *options.average_bits, ": must lie between ", bits.back(), " and ",
                bits.front(), ", the levels of --bits");
  }
}

// Zero points are packed down the rows: whatever the bits, so many of them fill whole words.
constexpr int64_t kZerosOfAWord = 32;

GgmlType parse_block_type(const std::string& option, const std::string& name) {
  return parse_ggml_type(option, name, kBlockTypes);
}

// Throws kUsage for what packed weights cannot say.
void check_packable(const ModelConfig& config, const std::string& where, bool is_symmetric) {
  if (is_symmetric) return;
  for (const OutputTensor& tensor : checkpoint_tensors(config, at::kFloat)) {
    if (tensor.stored.first_row % kZerosOfAWord == 0) continue;
    throw_error(ErrorKind::kUsage, where, ": tensor \"", tensor.stored.name,
                "\" holds several matrices, and one begins ", "at row ", tensor.stored.first_row,
                ", where no word of packed zero points does; give --symmetric");
  }
}

FormatRule format_rule(const Quantizing& in) {
  if (in.options.gguf) {
    FormatRule rule = gguf_rule(in);
    for (const int bits : levels_of(in.options))
      check_formats(in.config(), [&](int64_t, int64_t columns) { return rule(bits, columns); });
    return rule;
  }
  if (!in.options.fake_quant) check_packable(in.config(), in.checkpoint.path().string(), in.options.symmetric);
  QuantFormat format;
  format.symmetric = in.options.symmetric;
  format.scale_dtype = in.dtype();
  const FormatRule rule = [format, groups = groups_of(in.options, widths_of(in.config()))](int bits, int64_t columns) {
    QuantFormat chosen = format;
    chosen.bits = bits;
    chosen.group_size = groups.at(columns);
    return chosen;
  };
  check_formats(in.config(), [&](int64_t, int64_t columns) { return rule(8, columns); });
  return rule;
}

FormatOf formats_of(const FormatRule& rule, const QuantPlan& plan) {
  return [rule, bits = plan.bits](int64_t layer, int64_t columns) {
    return rule(bits[static_cast<size_t>(layer)], columns);
  };
}

Order rank_layers(const Quantizing& in, const Ranking& ranking, uint64_t seed, const JournalPhase& phase,
                  ProgressSink& progress) {
  const int64_t layers = in.config().num_layers();
  Order order;
  if (ranking.is_random) {
    order.layers = random_order(layers, seed);
    return order;
  }
  if (ranking.needs_text() && in.config().is_sliced()) {
    throw_error(ErrorKind::kUsage, in.checkpoint.path().string(),
                ": is sliced: its layers work in different bases, "
                "whose cosines mean nothing; give --order zd, search or random, or a score file of the dense model");
  }
  if (!ranking.metric) {
    order.scores = read_scores(ranking.file);
  } else if (!ranking.metric->needs_text()) {
    order.scores = score_weights(in.checkpoint, progress, phase);
  } else {
    const LayerWalk walk(in.checkpoint, in.compute, in.calibration->length, progress);
    order.scores = score_layers(walk, *in.calibration, {*ranking.metric, false, phase});
  }
  if (static_cast<int64_t>(order.scores->values.size()) != layers) {
    throw_error(ErrorKind::kBadInput, ranking.file, ": has scores of ", order.scores->values.size(),
                " layers; this model has ", layers);
  }
  order.layers = by_importance(*order.scores);
  if (ranking.is_reversed) std::ranges::reverse(order.layers);
  return order;
}

QuantPlanned make_quant_plan(const Quantizing& in, const Ranking& ranking, const FormatRule& rule, const PhaseOf& phase,
                             ProgressSink& progress) {
  QuantPlanned planned;
  if (!in.options.plan.empty()) {
    planned.plan = read_quant_plan(in.options.plan, in.config());
    return planned;
  }
  const std::vector<int> levels = levels_of(in.options);
  if (!needs_order(in.options)) {
    planned.plan.bits.assign(static_cast<size_t>(in.config().num_layers()), levels.front());
    return planned;
  }
  if (ranking.is_searched) {
    planned.plan = searched_plan(in, rule, phase, progress);
  } else {
    const Order order = rank_layers(in, ranking, in.options.seed, phase("scoring"), progress);
    planned.scores = order.scores;
    planned.plan.provenance["layers_from_least_important"] = order.layers;
    planned.plan.bits = in.options.average_bits
                            ? bits_by_average(in.config(), order.layers, levels, *in.options.average_bits)
                            : bits_by_share(order.layers, levels, shares_of(in.options));
  }
  planned.plan.order = in.options.order;
  return planned;
}

}  // namespace dynslice
