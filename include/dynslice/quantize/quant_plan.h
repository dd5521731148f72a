// Which layers keep how many bits: a JSON artefact that a person can read, edit and give back with --plan.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "dynslice/model/config.h"
#include "dynslice/support/json.h"

namespace dynslice {

struct QuantPlan {
  std::string order;      // what the layers were ranked by: "lim", "zd", "random", "search", "" when all are alike
  std::vector<int> bits;  // of a code, per layer
  OrderedJson provenance = OrderedJson::object();
};

[[nodiscard]] OrderedJson to_json(const QuantPlan& plan);

// Reads a plan for a model with `config`. Throws kBadInput: not a plan, another model's (the numbers of layers differ),
// bits outside 2 to 8.
[[nodiscard]] QuantPlan read_quant_plan(const std::filesystem::path& path, const ModelConfig& config);

// The same from a plan that is part of something else; `where` names that in messages.
[[nodiscard]] QuantPlan parse_quant_plan(const Json& json, const std::string& where, const ModelConfig& config);

// Weights of the matrices of a layer.
[[nodiscard]] int64_t layer_weights(const ModelConfig& config, int64_t layer);

// Mean bits of a code over the weights of all layers' matrices, without scales.
[[nodiscard]] double average_bits(const ModelConfig& config, const std::vector<int>& bits);

// `order`: all layers, the least important first. `levels`: bits, falling. `shares`: of the layers, at every level
// but the first; layers are counted to the nearest whole number. Throws kUsage when the shares are more than the whole.
[[nodiscard]] std::vector<int> bits_by_share(const std::vector<int64_t>& order, const std::vector<int>& levels,
                                             const std::vector<double>& shares);

// The same for an average over weights, between the two levels that it lies between: as few layers as will do are on
// the lower. Throws kUsage when it lies outside.
[[nodiscard]] std::vector<int> bits_by_average(const ModelConfig& config, const std::vector<int64_t>& order,
                                               const std::vector<int>& levels, double average);

// All layers in an order that `seed` alone decides.
[[nodiscard]] std::vector<int64_t> random_order(int64_t layers, uint64_t seed);

}  // namespace dynslice
