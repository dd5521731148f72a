// What the readers of config.json share.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>

#include "dynslice/model/architecture.h"
#include "dynslice/model/config.h"
#include "dynslice/support/json.h"

namespace dynslice {

inline constexpr int64_t kMaxPositions = (int64_t{1} << 31) - 1;

inline double positive(const JsonReader& reader, const std::string& key, double value) {
  if (!std::isfinite(value) || value <= 0) reader.fail(key, "a positive number");
  return value;
}

// Null and absent differ only where transformers says so.
inline bool is_null(const JsonReader& reader, const std::string& key) {
  return reader.raw().contains(key) && reader.raw().at(key).is_null();
}

// All that is said of rotary embeddings, but for the layers that have none; sizes of heads are there already.
void read_ropes(const JsonReader& reader, const Architecture& architecture, ModelConfig& config);

}  // namespace dynslice
