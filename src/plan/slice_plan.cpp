#include "dynslice/plan/slice_plan.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "dynslice/model/architecture.h"
#include "dynslice/support/error.h"

namespace dynslice {
namespace {

std::vector<double> read_ratios(const JsonReader& reader) {
  std::vector<double> ratios;
  for (const Json& value : reader.raw().at("ratios")) {
    if (!value.is_number()) reader.fail("ratios", "a list of numbers");
    ratios.push_back(value.get<double>());
  }
  return ratios;
}

std::vector<int64_t> read_integers(const JsonReader& reader, const char* key) {
  if (!reader.raw().at(key).is_array()) reader.fail(key, "a list of integers");
  std::vector<int64_t> values;
  for (const Json& value : reader.raw().at(key)) {
    if (!value.is_number_integer()) reader.fail(key, "a list of integers");
    values.push_back(value.get<int64_t>());
  }
  return values;
}

std::vector<HeadCount> read_heads(const JsonReader& reader) {
  if (!reader.has("heads") && !reader.has("kv_heads")) return {};
  if (!reader.has("heads")) reader.fail("heads", "a list of integers, as there is one of kv_heads");
  const std::vector<int64_t> heads = read_integers(reader, "heads");
  const std::vector<int64_t> kv = reader.has("kv_heads") ? read_integers(reader, "kv_heads") : heads;
  if (kv.size() != heads.size()) reader.fail("kv_heads", "a list as long as heads");
  std::vector<HeadCount> counts;
  for (size_t i = 0; i < heads.size(); ++i) counts.push_back({heads[i], kv[i]});
  return counts;
}

void check_heads(const SlicePlan& plan, const ModelConfig& config, const std::string& where) {
  if (plan.heads.empty()) return;
  if (!plan.is_modular()) throw_error(ErrorKind::kBadInput, where, ": only a modular plan may hold heads");
  if (plan.heads.size() != config.layers.size()) {
    throw_error(ErrorKind::kBadInput, where, ": has heads for ", plan.heads.size(), " layers; the model has ",
                config.layers.size());
  }
  for (size_t i = 0; i < plan.heads.size(); ++i) {
    const HeadCount& left = plan.heads[i];
    const LayerShape& shape = config.layers[i];
    if (!architecture_of(config).can_remove_heads()) {
      if (left == fewest_heads(config, i)) continue;
      throw_error(ErrorKind::kBadInput, where, ": layer ", i, " is to lose heads; ", config.model_type,
                  " norms them together, so that all must stay");
    }
    const bool may_be_none = fewest_heads(config, i) == HeadCount{};
    const bool none = may_be_none && left == HeadCount{};
    const bool some = left.kv_heads >= 1 && left.kv_heads <= shape.num_key_value_heads && left.heads >= left.kv_heads &&
                      left.heads % left.kv_heads == 0 &&
                      left.heads / left.kv_heads <= shape.num_attention_heads / shape.num_key_value_heads;
    if (none || some) continue;
    throw_error(ErrorKind::kBadInput, where, ": layer ", i, " cannot be left with ", left.heads, " heads and ",
                left.kv_heads, " key-value heads of its ", shape.num_attention_heads, " and ",
                shape.num_key_value_heads, "; every key-value head must keep as many heads as the others, ",
                shape.num_attention_heads / shape.num_key_value_heads, " at most",
                may_be_none ? "" : ", and this one cannot be without any");
  }
}

void check_ratios(const SlicePlan& plan, const std::string& where) {
  for (size_t i = 0; i < plan.ratios.size(); ++i) {
    if (!(plan.ratios[i] >= 0 && plan.ratios[i] <= kLargestRatio)) {
      throw_error(ErrorKind::kBadInput, where, ": slice ratio for layer ", i, " is ", plan.ratios[i],
                  "; it must be in [0, ", kLargestRatio, "]");
    }
  }
}

// A person who edited one of the two lists must not be ignored silently.
void check_agreement(const SlicePlan& plan, const std::string& where) {
  if (plan.ratios.size() != plan.dims.size()) {
    throw_error(ErrorKind::kBadInput, where, ": has ", plan.ratios.size(), " ratios and ", plan.dims.size(),
                " dims; both must have one value per layer");
  }
  const std::vector<int64_t> rounded = round_dimensions(plan.ratios, plan.whole(), plan.round_to);
  for (size_t i = 0; i < rounded.size(); ++i) {
    if (rounded[i] != plan.dims[i]) {
      throw_error(ErrorKind::kBadInput, where, ": layer ", i, " has ratio ", plan.ratios[i], ", which gives width ",
                  rounded[i], ", and width ", plan.dims[i],
                  "; remove the list (\"ratios\" or \"dims\") that you did not edit");
    }
  }
}

// A name of the enum's table; `otherwise` where the file has none.
template <Choosable E>
E read_choice(const JsonReader& reader, const std::string& key, E otherwise) {
  const auto found = choice_named<E>(reader.string_or(key, name_of(otherwise)));
  if (!found) reader.fail(key, "one of " + names_where<E>([](const auto&) { return true; }));
  return *found;
}

}  // namespace

HeadCount fewest_heads(const ModelConfig& config, size_t layer) {
  const LayerShape& shape = config.layers.at(layer);
  if (!architecture_of(config).can_remove_heads()) return {shape.num_attention_heads, shape.num_key_value_heads};
  return layer > 0 && !config.o_bias ? HeadCount{} : HeadCount{1, 1};
}

OrderedJson to_json(const SlicePlan& plan) {
  OrderedJson json;
  json["kind"] = "dynslice.slice_plan";
  json["method"] = name_of(plan.method);
  if (!plan.is_modular()) json["basis"] = name_of(plan.basis);
  json["allocator"] = plan.allocator;
  json["average_ratio"] = plan.average_ratio;
  json["base"] = plan.base;
  json["round_to"] = plan.round_to;
  json["hidden_size"] = plan.hidden_size;
  if (plan.is_modular()) json["intermediate_size"] = plan.intermediate_size;
  json["ratios"] = plan.ratios;
  json["dims"] = plan.dims;
  if (!plan.heads.empty()) {
    json["heads"] = json["kv_heads"] = OrderedJson::array();
    for (const HeadCount& left : plan.heads) {
      json["heads"].push_back(left.heads);
      json["kv_heads"].push_back(left.kv_heads);
    }
  }
  json["head_width"] = plan.head_width;
  json["provenance"] = plan.provenance;
  return json;
}

SlicePlan read_plan(const std::filesystem::path& path, const ModelConfig& config) {
  const Json json = parse_json_file(path);
  const JsonReader reader(json, path.string());
  SlicePlan plan;
  plan.method = read_choice(reader, "method", WidthMethod::kSlice);
  plan.basis = read_choice(reader, "basis", BasisScope::kBlock);
  plan.allocator = reader.string_or("allocator", "file");
  plan.round_to = reader.has("round_to") ? reader.integer("round_to", 1, 1 << 20) : 1;
  plan.hidden_size = reader.has("hidden_size") ? reader.integer("hidden_size", 1, 1 << 20) : config.hidden_size;
  plan.intermediate_size = config.layers.front().intermediate_size;
  if (plan.is_modular()) plan.intermediate_size = reader.integer_or("intermediate_size", plan.intermediate_size);
  if (reader.has("ratios")) {
    if (!json["ratios"].is_array()) reader.fail("ratios", "a list of numbers");
    plan.ratios = read_ratios(reader);
  }
  if (reader.has("dims")) plan.dims = read_integers(reader, "dims");
  plan.heads = read_heads(reader);
  if (plan.ratios.empty() && plan.dims.empty()) reader.fail("ratios", "a list with one ratio per layer");
  check_ratios(plan, path.string());  // before rounding, which expects sane ones
  if (!plan.ratios.empty() && !plan.dims.empty()) check_agreement(plan, path.string());
  if (plan.ratios.empty()) {
    for (const int64_t dim : plan.dims)
      plan.ratios.push_back(1 - static_cast<double>(dim) / static_cast<double>(plan.whole()));
  }
  if (plan.dims.empty()) plan.dims = round_dimensions(plan.ratios, plan.whole(), plan.round_to);
  plan.head_width = reader.integer_or("head_width", plan.is_global() ? plan.dims.front() : config.hidden_size);
  plan.average_ratio = reader.number_or("average_ratio", std::accumulate(plan.ratios.begin(), plan.ratios.end(), 0.0) /
                                                             static_cast<double>(plan.ratios.size()));
  if (!(plan.average_ratio >= 0 && plan.average_ratio < 1)) reader.fail("average_ratio", "in [0, 1)");
  plan.base = reader.number_or("base", plan.average_ratio);
  if (reader.has("provenance")) plan.provenance = json["provenance"];
  check_plan(plan, config, path.string());
  return plan;
}

void check_plan(const SlicePlan& plan, const ModelConfig& config, const std::string& where) {
  const auto layers = static_cast<size_t>(config.num_layers());
  if (plan.hidden_size != config.hidden_size || plan.dims.size() != layers || plan.ratios.size() != layers) {
    throw_error(ErrorKind::kBadInput, where, ": is a plan for ", plan.dims.size(), " layers of width ",
                plan.hidden_size, "; the model has ", layers, " layers of width ", config.hidden_size);
  }
  check_ratios(plan, where);
  if (plan.is_modular() && plan.intermediate_size != config.layers.front().intermediate_size) {
    throw_error(ErrorKind::kBadInput, where, ": is a plan for MLPs of size ", plan.intermediate_size,
                "; those of the model have ", config.layers.front().intermediate_size);
  }
  for (size_t i = 0; i < layers; ++i) {
    if (plan.dims[i] < 1 || plan.dims[i] > plan.whole()) {
      throw_error(ErrorKind::kBadInput, where, ": ", plan.is_modular() ? "size of the MLP" : "width", " of layer ", i,
                  " is ", plan.dims[i], "; it must be in [1, ", plan.whole(), "]");
    }
  }
  check_heads(plan, config, where);
  if (plan.head_width < 1 || plan.head_width > config.hidden_size) {
    throw_error(ErrorKind::kBadInput, where, ": head_width is ", plan.head_width, "; it must be in [1, ",
                config.hidden_size, "]");
  }
  if (!plan.is_global()) return;
  for (size_t i = 0; i <= layers; ++i) {
    const int64_t width = i < layers ? plan.dims[i] : plan.head_width;
    if (width != plan.dims.front()) {
      throw_error(ErrorKind::kBadInput, where, ": basis global has one width for all streams; layer 0 has ",
                  plan.dims.front(), " and ", i < layers ? "layer " + std::to_string(i) : "the head", " has ", width);
    }
  }
}

std::vector<int64_t> round_dimensions(const std::vector<double>& ratios, int64_t whole, int64_t round_to) {
  const double width = static_cast<double>(whole), multiple = static_cast<double>(round_to);
  std::vector<int64_t> dims(ratios.size());
  const bool all_equal = std::all_of(ratios.begin(), ratios.end(), [&](double r) { return r == ratios.front(); });
  if (round_to == 1 || all_equal) {
    for (size_t i = 0; i < ratios.size(); ++i) {
      dims[i] = static_cast<int64_t>(std::nearbyint((1 - ratios[i]) * width / multiple)) * round_to;
    }
  } else {
    std::vector<double> remainder(ratios.size());
    double exact_total = 0;
    int64_t total = 0;
    for (size_t i = 0; i < ratios.size(); ++i) {
      const double exact = (1 - ratios[i]) * width / multiple;
      exact_total += exact;
      dims[i] = static_cast<int64_t>(std::floor(exact)) * round_to;
      total += dims[i] / round_to;
      remainder[i] = exact - std::floor(exact);
    }
    std::vector<size_t> order(ratios.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return remainder[a] > remainder[b]; });
    const auto missing = static_cast<size_t>(std::max<int64_t>(0, std::llround(exact_total) - total));
    for (size_t i = 0; i < std::min(missing, order.size()); ++i) dims[order[i]] += round_to;
  }
  for (size_t i = 0; i < dims.size(); ++i) {
    dims[i] = ratios[i] == 0 ? whole : std::clamp(dims[i], std::min(round_to, whole), whole);
  }
  return dims;
}

namespace {

// The cheapest exact shortcut between the principal subspaces of two neighbouring streams. Two subspaces of dimensions
// `in` and `out` of d share at least in + out - d directions, which a suitable choice of bases passes on unchanged:
// what is left has rank d - max(in, out), or d - out when the stream becomes narrower.
ShortcutShape cheapest_shortcut(int64_t in, int64_t out, int64_t hidden_size) {
  const ShortcutShape matrix{ShortcutKind::kMatrix, 0};
  const ShortcutShape low_rank{in <= out ? ShortcutKind::kSymmetric : ShortcutKind::kLowRank, hidden_size - out};
  if (in == out && low_rank.rank == 0) return {};
  return shortcut_parameters(low_rank, in, out) < shortcut_parameters(matrix, in, out) ? low_rank : matrix;
}

// A tied, unsliced head reads the original basis: the last stream that was narrower is brought there by a matrix.
void lead_to_original_basis(ModelConfig& config) {
  for (size_t i = config.layers.size(); i-- > 0;) {
    LayerShape& shape = config.layers[i];
    if (shape.middle_width < config.hidden_size) {
      shape.mlp_shortcut = {ShortcutKind::kMatrix, 0};
      return;
    }
    if (shape.input_width < config.hidden_size) {
      shape.attn_shortcut = {ShortcutKind::kMatrix, 0};
      return;
    }
  }
}

// The shapes of an ordinary model of hidden size D. Its norms divide by D where the sliced stream's divide by d: eps
// and weights make up for that.
ModelConfig narrower_config(const ModelConfig& dense, int64_t width) {
  ModelConfig config = dense;
  config.rms_norm_eps = dense.rms_norm_eps * static_cast<double>(dense.hidden_size) / static_cast<double>(width);
  config.hidden_size = config.embedding_width = config.head_width = width;
  config.has_final_norm_weight = true;
  for (LayerShape& shape : config.layers) {
    shape.input_width = shape.middle_width = shape.output_width = width;
    shape.has_norm_weights = true;
  }
  return config;
}

}  // namespace

ModelConfig sliced_config(const ModelConfig& dense, const SlicePlan& plan) {
  ModelConfig config = dense;
  if (plan.is_modular()) {
    for (size_t i = 0; i < config.layers.size(); ++i) {
      LayerShape& shape = config.layers[i];
      const HeadCount left = plan.heads_of(i, shape);
      shape.intermediate_size = plan.dims[i];
      shape.num_attention_heads = left.heads;
      shape.num_key_value_heads = left.kv_heads;
    }
    return config;
  }
  if (plan.is_global()) return narrower_config(dense, plan.dims.front());
  config.embedding_width = plan.dims.front();
  config.head_width = plan.head_width;
  const int64_t d = dense.hidden_size, entering = config.embedding_width, leaving = config.head_width;
  if (dense.tie_word_embeddings) {
    // One unsliced matrix with its rotations beside it, or two sliced matrices.
    const int64_t rotations = (entering < d ? d * entering : 0) + (leaving < d ? d * leaving : 0);
    config.tie_word_embeddings =
        dense.has_centred_norms || dense.vocab_size * d + rotations <= dense.vocab_size * (entering + leaving);
  }
  const bool tied = config.tie_word_embeddings;
  config.has_embedding_rotation = tied && entering < d;
  // The bias of a layer norm has a place of its own in front of the output matrix, which stays as it is then.
  const bool keeps_head = tied || dense.has_centred_norms;
  config.has_head_rotation = keeps_head && leaving < d;
  config.has_final_norm_weight = keeps_head && leaving == d && dense.has_final_norm_weight;
  for (size_t i = 0; i < config.layers.size(); ++i) {
    LayerShape& shape = config.layers[i];
    shape.input_width = plan.dims[i];
    shape.middle_width = plan.dims[i];
    shape.output_width = i + 1 < plan.dims.size() ? plan.dims[i + 1] : plan.head_width;
    shape.attn_shortcut = plan.basis == BasisScope::kLayer
                              ? ShortcutShape{}
                              : cheapest_shortcut(shape.input_width, shape.middle_width, d);
    shape.mlp_shortcut = cheapest_shortcut(shape.middle_width, shape.output_width, d);
    shape.has_norm_weights = false;
  }
  if (keeps_head && leaving == d) lead_to_original_basis(config);
  return config;
}

}  // namespace dynslice
