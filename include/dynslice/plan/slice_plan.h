// How much to slice where: a ratio and a width per layer. A JSON artefact that a person can read, edit and give
// back with --plan.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "dynslice/model/config.h"
#include "dynslice/plan/choices.h"
#include "dynslice/support/json.h"

namespace dynslice {

// Attention heads that a layer keeps; none of either makes it an MLP alone.
struct HeadCount {
  int64_t heads = 0;     // of queries; a multiple of
  int64_t kv_heads = 0;  // those of keys and values
  bool operator==(const HeadCount&) const = default;
};

struct SlicePlan {
  WidthMethod method = WidthMethod::kSlice;  // what `dims` are: widths of the stream, or sizes of the MLPs' insides
  BasisScope basis = BasisScope::kBlock;     // of slice
  std::string allocator;                     // whose plan it is: an Allocator's name, or what a plan file says
  double average_ratio = 0;                  // that was asked for, in [0, 1)
  double base = 0;                           // slicing base of `lr`; the average for `constant`
  int64_t round_to = 8;                      // multiple that the widths are rounded to
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;  // of modular: of the model's MLPs
  std::vector<double> ratios;     // per layer, before rounding
  // Per layer: width D_i of the stream that enters it and of the one inside it, or intermediate size of its MLP.
  std::vector<int64_t> dims;
  std::vector<HeadCount> heads;  // of modular: per layer; empty when all layers keep theirs
  int64_t head_width = 0;        // width of the stream that enters the final norm: hidden_size unless --slice-head
  OrderedJson provenance = OrderedJson::object();

  bool is_modular() const { return method == WidthMethod::kModular; }
  bool is_global() const { return !is_modular() && basis == BasisScope::kGlobal; }
  // What `dims` are shares of.
  int64_t whole() const { return is_modular() ? intermediate_size : hidden_size; }
  // Of a layer that has `shape` in the source.
  HeadCount heads_of(size_t layer, const LayerShape& shape) const {
    return heads.empty() ? HeadCount{shape.num_attention_heads, shape.num_key_value_heads} : heads[layer];
  }
};

// The largest ratio that a plan may hold for a layer.
inline constexpr double kLargestRatio = 0.95;

// That a plan may leave a layer: none, unless readers take the sizes of heads from it (layer 0), or a bias of the
// attention's output would go with the last one; all where the architecture norms them together.
[[nodiscard]] HeadCount fewest_heads(const ModelConfig& config, size_t layer);

[[nodiscard]] OrderedJson to_json(const SlicePlan& plan);

// Reads a plan for a model with `config`. `dims` may be missing (they are then rounded from `ratios`), or
// `ratios` (then 1 - D/d). Throws kBadInput: not a plan, another model's plan (layers or hidden size differ),
// a ratio outside [0, 0.95], a width outside [1, hidden_size], ratio and width of a layer that disagree, different
// widths in one basis, or numbers of heads that the model's layers cannot be left with.
[[nodiscard]] SlicePlan read_plan(const std::filesystem::path& path, const ModelConfig& config);

// Throws kBadInput when the plan does not fit the model; `where` names the plan in the message.
void check_plan(const SlicePlan& plan, const ModelConfig& config, const std::string& where);

// Widths (1 - ratio) * whole as multiples of `round_to`, by largest remainder: their mean is within half a
// multiple of the exact one. Equal ratios give equal widths; `round_to` 1 rounds each to the nearest integer,
// halves to even, as the reference code does. A ratio of 0 keeps the whole.
[[nodiscard]] std::vector<int64_t> round_dimensions(const std::vector<double>& ratios, int64_t whole, int64_t round_to);

// The configuration of the model that slicing `dense` by `plan` gives, or compressing its MLPs.
[[nodiscard]] ModelConfig sliced_config(const ModelConfig& dense, const SlicePlan& plan);

}  // namespace dynslice
