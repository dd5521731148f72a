// config.json as Hugging Face has it, to and from ModelConfig. What the readers and the writer of configurations share.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "dynslice/model/config.h"

namespace dynslice {

// A dense model's configuration from an object in Hugging Face's form whose model_type has been found to be
// `model_type`. Every number is checked against bounds that keep products and sums of sizes below 2^63.
[[nodiscard]] ModelConfig parse_dense_config(const Json& object, const std::string& model_type,
                                             const std::string& where);

// The same for any supported object: dense, or written by dynslice.
[[nodiscard]] ModelConfig parse_config(const Json& object, const std::string& where);

// An object in Hugging Face's form that says what `config`, a dense model's, says.
[[nodiscard]] Json describe_dense_config(const ModelConfig& config);

// For each of `count` layers whether it is a `period`-th one, counted from 1.
[[nodiscard]] std::vector<bool> every_nth_layer(size_t count, int64_t period);

// Of the "dynslice" object; older ones were never released.
inline constexpr int64_t kDynsliceFormat = 2;

// Number of layers a configuration may ask for.
inline constexpr int64_t kMaxLayers = 10000;

}  // namespace dynslice
