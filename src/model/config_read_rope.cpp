// Rotary embeddings in config.json, in the words of transformers 4 (rope_theta, rope_scaling) and 5 (rope_parameters).
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "dynslice/model/rope.h"
#include "model/config_reading.h"

namespace dynslice {
namespace {

constexpr const char* kRotaryShare = "partial_rotary_factor";

void check_whole_rotary(const JsonReader& reader) {
  if (reader.number_or(kRotaryShare, 1.0) != 1.0)
    reader.fail(kRotaryShare, "1, as only whole rotary embeddings are supported in this architecture");
}

// Of a head, where an architecture may leave channels as they are. `scaling` is where transformers 5 says it.
void read_rotary_dim(const JsonReader& reader, const JsonReader& scaling, double usual, ModelConfig& config) {
  const JsonReader& holder = scaling.has(kRotaryShare) ? scaling : reader;
  const double share = positive(holder, kRotaryShare, holder.number_or(kRotaryShare, usual));
  const auto channels = static_cast<int64_t>(static_cast<double>(config.layers.front().head_dim) * share);
  if (share > 1 || channels < 2 || channels % 2 != 0)
    holder.fail(kRotaryShare, "at most 1, and such that an even number of a head's channels is rotated");
  config.rotary_dim = channels;
}

void read_llama3_scaling(const JsonReader& config, const JsonReader& scaling, RopeConfig& rope) {
  rope.scaling = RopeScalingKind::kLlama3;
  rope.factor = positive(scaling, "factor", scaling.number("factor"));
  rope.low_freq_factor = positive(scaling, "low_freq_factor", scaling.number("low_freq_factor"));
  rope.high_freq_factor = positive(scaling, "high_freq_factor", scaling.number("high_freq_factor"));
  if (rope.high_freq_factor <= rope.low_freq_factor) scaling.fail("high_freq_factor", "above low_freq_factor");
  const std::string key = "original_max_position_embeddings";
  const JsonReader& holder = !scaling.has(key) && config.has(key) ? config : scaling;
  rope.original_max_position_embeddings = holder.integer(key, 1, kMaxPositions);
}

void read_yarn_scaling(const JsonReader& config, const JsonReader& scaling, RopeConfig& rope) {
  const auto number = [&](const char* key, double otherwise) {
    return positive(scaling, key, scaling.number_or(key, otherwise));
  };
  rope.scaling = RopeScalingKind::kYarn;
  rope.factor = positive(scaling, "factor", scaling.number("factor"));
  rope.beta_fast = number("beta_fast", rope.beta_fast);
  rope.beta_slow = number("beta_slow", rope.beta_slow);
  if (rope.beta_fast < rope.beta_slow) scaling.fail("beta_fast", "beta_slow or more");
  rope.truncates = scaling.boolean_or("truncate", true);
  std::string key = "original_max_position_embeddings";
  const JsonReader& holder = scaling.has(key) ? scaling : config;
  if (!holder.has(key)) key = "max_position_embeddings";
  rope.original_max_position_embeddings = holder.integer(key, 1, kMaxPositions);
  if (rope.theta <= 1) config.fail("rope_theta", "above 1 where rope is scaled by yarn");
  rope.attention_factor = yarn_attention_factor(rope.factor);
  if (scaling.has("attention_factor")) {
    rope.attention_factor = number("attention_factor", 1);
  } else if (scaling.number_or("mscale", 0) != 0 && scaling.number_or("mscale_all_dim", 0) != 0) {
    const auto share = [&](const char* scale) {
      return 1 + number(scale, 1) * (yarn_attention_factor(rope.factor) - 1);
    };
    rope.attention_factor = share("mscale") / share("mscale_all_dim");
  }
}

// Queries that grow with their position; the length that they grow by is yarn's.
void read_query_growth(const JsonReader& scaling, RopeConfig& rope) {
  const char* key = "llama_4_scaling_beta";
  if (!scaling.has(key)) return;
  if (rope.scaling != RopeScalingKind::kYarn) scaling.fail(key, "absent where rope is not scaled by yarn");
  rope.query_growth = scaling.number_or(key, 0);
  if (!std::isfinite(rope.query_growth) || rope.query_growth < 0) scaling.fail(key, "a number from 0 on");
}

// A theta for a longer context, said by its factor alpha.
void read_dynamic_alpha(const JsonReader& scaling, int64_t head_dim, RopeConfig& rope) {
  const auto width = static_cast<double>(head_dim);
  if (head_dim <= 2) scaling.fail("alpha", "absent where a head is no wider than 2");
  rope.theta *= std::pow(positive(scaling, "alpha", scaling.number("alpha")), width / (width - 2));
}

// `scaling` is rope_scaling of transformers 4 or rope_parameters of transformers 5.
void read_rope_scaling(const JsonReader& config, const JsonReader& scaling, RopeConfig& rope) {
  const std::string type_key = scaling.has("rope_type") ? "rope_type" : "type";
  const std::string type = scaling.string_or(type_key, "default");
  if (type == "linear") {
    rope.scaling = RopeScalingKind::kLinear;
    rope.factor = positive(scaling, "factor", scaling.number("factor"));
  } else if (type == "llama3") {
    read_llama3_scaling(config, scaling, rope);
  } else if (type == "yarn") {
    read_yarn_scaling(config, scaling, rope);
  } else if (type != "default") {
    scaling.fail(type_key, "one of the supported rope scalings default, linear, llama3, yarn");
  }
}

// A share of the pairs turns, in heads as wide as they are.
void read_turning_share(const JsonReader& scaling, RopeConfig& rope) {
  rope.turning_share = positive(scaling, kRotaryShare, scaling.number_or(kRotaryShare, 1));
  if (rope.turning_share > 1) scaling.fail(kRotaryShare, "at most 1");
  if (scaling.number_or("factor", 1) != 1) scaling.fail("factor", "1 or absent where rope_type is proportional");
}

// rope_parameters of transformers 5, the layers' that see all and those' that slide.
void read_rope_by_layer(const JsonReader& reader, const JsonReader& parameters, ModelConfig& config) {
  const bool may_turn_in_part = architecture_of(config).turning_share > 0;
  const auto read = [&](const char* key, RopeConfig& rope) {
    if (!parameters.has(key)) return;
    const JsonReader one = parameters.object(key);
    if (may_turn_in_part && one.string_or("rope_type", "default") == "proportional") {
      rope.theta = positive(one, "rope_theta", one.number_or("rope_theta", rope.theta));
      read_turning_share(one, rope);
      return;
    }
    rope.turning_share = 1;
    check_whole_rotary(one);
    rope.theta = positive(one, "rope_theta", one.number_or("rope_theta", rope.theta));
    read_rope_scaling(reader, one, rope);
  };
  read("full_attention", config.rope);
  read("sliding_attention", *config.sliding_rope);
}

// Where layers that slide rotate in a way of their own: rope_local_base_freq of transformers 4, which scales only the
// others.
void read_two_ropes(const JsonReader& reader, const Architecture& architecture, ModelConfig& config) {
  config.rope = config.sliding_rope.emplace();
  const auto theta = [&](const char* key, double otherwise) {
    return positive(reader, key, reader.number_or(key, otherwise));
  };
  config.rope.theta = theta("rope_theta", architecture.rope_theta);
  if (architecture.turning_share > 0) config.rope.turning_share = architecture.turning_share;
  config.sliding_rope->theta = theta("rope_local_base_freq", architecture.sliding_rope_theta);
  if (reader.has("rope_parameters")) {
    read_rope_by_layer(reader, reader.object("rope_parameters"), config);
  } else if (reader.has("rope_scaling")) {
    check_whole_rotary(reader.object("rope_scaling"));
    read_rope_scaling(reader, reader.object("rope_scaling"), config.rope);
  }
}

// One divisor a pair, for short contexts and for long ones.
void read_longrope(const JsonReader& reader, const JsonReader& scaling, const ModelConfig& config, RopeConfig& rope) {
  rope.scaling = RopeScalingKind::kLongRope;
  const auto read_divisors = [&](const char* key) {
    const Json values = scaling.raw().contains(key) ? scaling.raw().at(key) : Json();
    const auto pairs = static_cast<size_t>(config.rotated_channels(config.layers.front()) / 2);
    const bool fits = values.is_array() && values.size() == pairs && std::ranges::all_of(values, [](const Json& value) {
                        return value.is_number() && value.get<double>() > 0 && std::isfinite(value.get<double>());
                      });
    if (!fits) scaling.fail(key, "a list of " + std::to_string(pairs) + " positive numbers, one for every rotary pair");
    return values.get<std::vector<double>>();
  };
  rope.short_divisors = read_divisors("short_factor");
  rope.long_divisors = read_divisors("long_factor");
  const char* original = "original_max_position_embeddings";
  const JsonReader& holder = scaling.has(original) ? scaling : reader;
  rope.original_max_position_embeddings = holder.has(original) ? holder.integer(original, 2, kMaxPositions) : 4096;
  const double longer =
      static_cast<double>(config.max_position_embeddings) / static_cast<double>(rope.original_max_position_embeddings);
  const double factor = positive(scaling, "factor", scaling.number_or("factor", longer));
  const double usual = longrope_attention_factor(factor, rope.original_max_position_embeddings);
  rope.attention_factor = positive(scaling, "attention_factor", scaling.number_or("attention_factor", usual));
}

// Of the one rope of all layers, what read_rope_scaling does not know.
void read_own_scaling(const JsonReader& reader, const JsonReader& scaling, const Architecture& architecture,
                      ModelConfig& config, RopeConfig& rope) {
  const std::string type = scaling.string_or(scaling.has("rope_type") ? "rope_type" : "type", "default");
  if (architecture.partial_rotary_factor > 0) {
    read_rotary_dim(reader, scaling, architecture.partial_rotary_factor, config);
  } else {
    check_whole_rotary(scaling);
  }
  if (architecture.has_dynamic_alpha && type == "dynamic") {
    read_dynamic_alpha(scaling, config.layers.front().head_dim, rope);
  } else if (architecture.has_longrope && (type == "longrope" || type == "su" || type == "yarn")) {
    read_longrope(reader, scaling, config, rope);
  } else {
    read_rope_scaling(reader, scaling, rope);
  }
  if (architecture.has_query_growth) read_query_growth(scaling, rope);
}

RopeConfig read_rope(const JsonReader& reader, const Architecture& architecture, ModelConfig& config) {
  RopeConfig rope;
  rope.theta = positive(reader, "rope_theta", reader.number_or("rope_theta", architecture.rope_theta));
  if (architecture.partial_rotary_factor > 0) {
    read_rotary_dim(reader, reader, architecture.partial_rotary_factor, config);
  } else {
    check_whole_rotary(reader);
  }
  if (reader.has("rope_parameters")) {
    const JsonReader parameters = reader.object("rope_parameters");
    if (parameters.has("full_attention") || parameters.has("sliding_attention")) {
      reader.fail("rope_parameters", "the same for all layers");
    }
    rope.theta = positive(parameters, "rope_theta", parameters.number_or("rope_theta", rope.theta));
    read_own_scaling(reader, parameters, architecture, config, rope);
  } else if (reader.has("rope_scaling")) {
    read_own_scaling(reader, reader.object("rope_scaling"), architecture, config, rope);
  } else if (architecture.has_query_growth) {
    reader.fail("rope_parameters", "there, as this architecture scales rope by yarn");
  }
  return rope;
}

}  // namespace

void read_ropes(const JsonReader& reader, const Architecture& architecture, ModelConfig& config) {
  if (architecture.sliding_rope_theta > 0) {
    read_two_ropes(reader, architecture, config);
  } else {
    config.rope = read_rope(reader, architecture, config);
  }
}

}  // namespace dynslice
