// The configuration of a GGUF file: its metadata said in Hugging Face's words, then read like any config.json.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <numbers>
#include <variant>

#include "checkpoint/gguf_metadata.h"
#include "dynslice/formats/gguf/ggml_dequantize.h"
#include "dynslice/model/architecture.h"
#include "dynslice/model/config_json.h"
#include "dynslice/model/rope.h"
#include "dynslice/support/error.h"

namespace dynslice {
namespace {

// Metadata of one file, under the prefix of its architecture.
class Metadata {
 public:
  explicit Metadata(const GgufFile& file) : file_(file), architecture_(file.string("general.architecture")) {}

  const GgufFile& file() const { return file_; }
  const std::string& architecture() const { return architecture_; }
  std::string key(const std::string& suffix) const { return architecture_ + "." + suffix; }
  bool has(const std::string& suffix) const { return file_.has(key(suffix)); }
  int64_t integer(const std::string& suffix) const { return file_.integer(key(suffix)); }
  // One number, or one a layer.
  std::vector<int64_t> sizes(const std::string& suffix) const {
    const auto found = file_.metadata().find(key(suffix));
    const bool is_list = found != file_.metadata().end() && std::holds_alternative<std::vector<int64_t>>(found->second);
    return is_list ? file_.integers(key(suffix)) : std::vector<int64_t>{integer(suffix)};
  }

  // Floats are stored in 32 bits: 1e-5 comes as 9.99999974e-06. The shortest decimal that gives the same 32 bits is
  // what the model's author wrote.
  double number(const std::string& suffix) const {
    const double value = file_.number(key(suffix));
    const auto narrow = static_cast<float>(value);
    if (static_cast<double>(narrow) != value) return value;
    char text[32];
    const auto end = std::to_chars(text, text + sizeof text, narrow).ptr;
    double shortest = value;
    std::from_chars(text, end, shortest);
    return shortest;
  }

  [[noreturn]] void fail(const std::string& suffix, const std::string& expected) const {
    throw_error(ErrorKind::kBadInput, file_.path().string(), ": key \"", key(suffix), "\" must be ", expected);
  }

 private:
  const GgufFile& file_;
  std::string architecture_;
};

// Several model types may go by one name in GGUF, as Mistral goes by that of Llama and OLMo 3 by that of OLMo 2; what
// sets them apart is the window.
const Architecture& architecture_of(const Metadata& metadata) {
  const std::string& name = metadata.architecture();
  const bool slides = metadata.has("attention.sliding_window");
  const Architecture* found = nullptr;
  std::vector<std::string_view> names;
  for (const Architecture& row : architectures()) {
    for (const std::string_view known : {row.gguf, row.gguf_of_unequal_layers}) {
      if (!known.empty() && std::ranges::find(names, known) == names.end()) names.push_back(known);
    }
    if (name != row.gguf && name != row.gguf_of_unequal_layers) continue;
    const bool may_slide = row.window == WindowRule::kAllLayers || row.window == WindowRule::kByPattern;
    if (found == nullptr || slides == may_slide) found = &row;
  }
  if (found == nullptr) {
    std::string list;
    for (const std::string_view known : names) list += (list.empty() ? "" : ", ") + std::string(known);
    throw_error(ErrorKind::kBadInput, metadata.file().path().string(), ": key \"general.architecture\" is ",
                Json(name).dump(-1, ' ', true, Json::error_handler_t::replace), "; supported are ", list);
  }
  if (metadata.has("expert_count") && metadata.integer("expert_count") > 0) {
    metadata.fail("expert_count", "0 or absent, as mixtures of experts are not supported");
  }
  return *found;
}

bool has_tensor(const Metadata& metadata, const std::string& name) { return metadata.file().find(name) != nullptr; }

constexpr int64_t kMaxSize = int64_t{1} << 20;

void check_size(const Metadata& metadata, const std::string& suffix, int64_t size) {
  if (size < 1 || size > kMaxSize) metadata.fail(suffix, "from 1 to 2^20; found " + std::to_string(size));
}

// Sizes that are multiplied before parse_dense_config has seen them.
int64_t read_size(const Metadata& metadata, const std::string& suffix) {
  const int64_t size = metadata.integer(suffix);
  check_size(metadata, suffix, size);
  return size;
}

// A size that deci has layer by layer: the first layer's.
int64_t read_first_size(const Metadata& metadata, const std::string& suffix) {
  const std::vector<int64_t> sizes = metadata.sizes(suffix);
  if (sizes.empty()) metadata.fail(suffix, "a list of one size a layer");
  check_size(metadata, suffix, sizes.front());
  return sizes.front();
}

[[noreturn]] void fail_width(const Metadata& metadata, const std::string& key, int64_t head_dim) {
  metadata.fail(
      key, "the width of a head (" + std::to_string(head_dim) + "); found " + std::to_string(metadata.integer(key)));
}

int64_t read_head_dim(const Metadata& metadata, int64_t hidden_size, int64_t heads) {
  const bool is_said = metadata.has("attention.key_length");
  const int64_t head_dim = is_said ? read_size(metadata, "attention.key_length") : hidden_size / heads;
  const char* values = "attention.value_length";
  if (metadata.has(values) && metadata.integer(values) != head_dim) fail_width(metadata, values, head_dim);
  return head_dim;
}

// Channels of a head that are rotated: all, where the architecture does not leave some as they are.
int64_t read_rotary_dim(const Metadata& metadata, const Architecture& architecture, int64_t head_dim) {
  const char* key = "rope.dimension_count";
  const int64_t channels = metadata.has(key) ? metadata.integer(key) : head_dim;
  if (architecture.partial_rotary_factor == 0 && channels != head_dim) fail_width(metadata, key, head_dim);
  if (channels < 2 || channels > head_dim || channels % 2 != 0)
    metadata.fail(key, "an even number up to the width of a head (" + std::to_string(head_dim) + ")");
  return channels;
}

std::vector<double> read_divisors(const Metadata& metadata, const std::string& name, int64_t channels) {
  const GgufTensor* tensor = metadata.file().find(name);
  if (tensor == nullptr) return {};
  const auto fail = [&](const std::string& expected) {
    throw_error(ErrorKind::kBadInput, metadata.file().path().string(), ": tensor \"", name, "\" must ", expected);
  };
  if (tensor->shape != std::vector<int64_t>{channels / 2}) fail("have " + std::to_string(channels / 2) + " values");
  std::vector<float> values(static_cast<size_t>(channels / 2));
  dequantize(tensor->type, metadata.file().bytes(*tensor), values);
  for (const float value : values) {
    if (!std::isfinite(value) || value <= 0) fail("hold positive numbers");
  }
  return {values.begin(), values.end()};
}

// Finds the llama3 scaling (with its usual low and high factors, 1 and 4) that the divisors were made from, so that
// other programs can be told of it. Leaves kNone when there is none.
void recognise_llama3(const std::vector<double>& divisors, RopeConfig& rope) {
  RopeConfig guess = rope;
  guess.scaling = RopeScalingKind::kLlama3;
  guess.factor = std::round(divisors.back() * 1e4) / 1e4;
  if (guess.factor <= 1.0) return;
  const auto count = static_cast<double>(divisors.size());
  const auto wavelength = [&](size_t pair) {
    return 2 * std::numbers::pi * std::pow(rope.theta, static_cast<double>(pair) / count);
  };
  guess.original_max_position_embeddings = 8192;  // Llama 3's own, when no divisor lies between the ends
  for (size_t i = 0; i < divisors.size(); ++i) {
    if (divisors[i] < 1.001 || divisors[i] > guess.factor * 0.999) continue;
    const double smooth = (1.0 / divisors[i] - 1.0 / guess.factor) / (1.0 - 1.0 / guess.factor);
    const double turns = smooth * (guess.high_freq_factor - guess.low_freq_factor) + guess.low_freq_factor;
    guess.original_max_position_embeddings = std::llround(turns * wavelength(i));
    break;
  }
  for (size_t i = 0; i < divisors.size(); ++i) {
    if (std::abs(llama3_divisor(guess, wavelength(i)) / divisors[i] - 1.0) > 1e-4) return;
  }
  if (guess.original_max_position_embeddings > 0) rope = guess;
}

double positive(const Metadata& metadata, const std::string& key, double otherwise) {
  const double value = metadata.has(key) ? metadata.number(key) : otherwise;
  if (!std::isfinite(value) || value <= 0) metadata.fail(key, "a positive number");
  return value;
}

// What the file says of beta_fast and beta_slow llama.cpp heeds in other architectures only.
void read_yarn(const Metadata& metadata, RopeConfig& rope) {
  rope.scaling = RopeScalingKind::kYarn;
  if (!metadata.has("rope.scaling.factor")) metadata.fail("rope.scaling.factor", "there, as yarn needs it");
  rope.factor = positive(metadata, "rope.scaling.factor", 1);
  const bool is_said = metadata.has("rope.scaling.original_context_length");
  rope.original_max_position_embeddings =
      metadata.integer(is_said ? "rope.scaling.original_context_length" : "context_length");
  rope.attention_factor = positive(metadata, "rope.scaling.attn_factor", 1) * yarn_attention_factor(rope.factor);
  const char* share = "rope.scaling.yarn_log_multiplier";
  if (metadata.has(share) && metadata.number(share) != 0)
    rope.attention_factor /= 1 + positive(metadata, share, 1) * (yarn_attention_factor(rope.factor) - 1);
  if (metadata.has("attention.temperature_scale"))
    rope.query_growth = positive(metadata, "attention.temperature_scale", 1);
}

// Granite's multipliers; logits are divided by the one that llama.cpp calls their scale.
void read_multipliers(const Metadata& metadata, ModelConfig& config) {
  const double usual = 1 / std::sqrt(static_cast<double>(config.layers.front().head_dim));
  config.attention_scale = positive(metadata, "attention.scale", usual);
  config.embedding_scale = positive(metadata, "embedding_scale", 1);
  config.branch_scale = positive(metadata, "residual_scale", 1);
  config.logit_scale = 1 / positive(metadata, "logit_scale", 1);
}

// Which of the two holds is decided by the length of the context.
void read_longrope(const Metadata& metadata, int64_t channels, RopeConfig& rope) {
  rope.scaling = RopeScalingKind::kLongRope;
  rope.long_divisors = read_divisors(metadata, kRopeFactorsLong, channels);
  rope.short_divisors = read_divisors(metadata, kRopeFactorsShort, channels);
  const bool is_said = metadata.has("rope.scaling.original_context_length");
  rope.original_max_position_embeddings =
      metadata.integer(is_said ? "rope.scaling.original_context_length" : "context_length");
  rope.attention_factor = positive(metadata, "rope.scaling.attn_factor", 1);
}

// Pairs that stand still have divisors so large that they turn by nothing.
void read_turning_share(const Metadata& metadata, RopeConfig& rope) {
  const std::vector<double>& divisors = rope.frequency_divisors;
  const auto standing = std::ranges::find_if(divisors, [](double divisor) { return divisor != 1; });
  if (std::any_of(standing, divisors.end(), [](double divisor) { return divisor < kStandingDivisor / 1e6; })) {
    throw_error(ErrorKind::kBadInput, metadata.file().path().string(), ": tensor \"", kRopeFrequencies,
                "\" must hold 1 for pairs that turn, and behind them 1e30 for those that do not");
  }
  rope.turning_share = static_cast<double>(standing - divisors.begin()) / static_cast<double>(divisors.size());
  rope.frequency_divisors.clear();
}

RopeConfig read_rope(const Metadata& metadata, int64_t channels, bool turns_in_part) {
  RopeConfig rope;
  rope.theta = positive(metadata, "rope.freq_base", rope.theta);
  const std::string type =
      metadata.has("rope.scaling.type") ? metadata.file().string(metadata.key("rope.scaling.type")) : "none";
  if (type != "none" && type != "linear" && type != "yarn") {
    metadata.fail("rope.scaling.type", "none, linear or yarn, or a tensor rope_freqs.weight must carry the scaling");
  }
  const std::string factor_key = metadata.has("rope.scaling.factor") ? "rope.scaling.factor" : "rope.scale_linear";
  if (type == "yarn") {
    read_yarn(metadata, rope);
  } else if ((type == "linear" || factor_key == "rope.scale_linear") && metadata.has(factor_key)) {
    rope.factor = positive(metadata, factor_key, 1);
    if (rope.factor != 1.0) rope.scaling = RopeScalingKind::kLinear;
  }
  if (has_tensor(metadata, kRopeFactorsLong) || has_tensor(metadata, kRopeFactorsShort)) {
    read_longrope(metadata, channels, rope);
    return rope;
  }
  rope.frequency_divisors = read_divisors(metadata, kRopeFrequencies, channels);
  if (rope.frequency_divisors.empty()) return rope;
  if (turns_in_part) {
    read_turning_share(metadata, rope);
    return rope;
  }
  if (rope.scaling != RopeScalingKind::kNone)
    metadata.fail(factor_key, "absent where rope_freqs.weight carries the scaling");
  recognise_llama3(rope.frequency_divisors, rope);
  return rope;
}

// What llama.cpp takes where the file is silent is what the first models of the architecture had.
RopeConfig read_sliding_rope(const Metadata& metadata, const Architecture& architecture, double theta) {
  RopeConfig rope;
  rope.theta = theta;
  if (architecture.gguf_has_one_theta) return rope;
  rope.theta = positive(metadata, "rope.freq_base_swa", architecture.sliding_rope_theta);
  return rope;
}

// A list of one flag a layer, or that all layers but every n-th have it.
std::vector<bool> read_pattern(const Metadata& metadata, const std::string& suffix, size_t count, int64_t period) {
  const auto found = metadata.file().metadata().find(metadata.key(suffix));
  const bool is_there = found != metadata.file().metadata().end();
  std::vector<bool> flags(count);
  if (is_there && std::holds_alternative<std::vector<bool>>(found->second)) {
    flags = std::get<std::vector<bool>>(found->second);
  } else if (is_there && std::holds_alternative<std::vector<int64_t>>(found->second)) {
    const std::vector<int64_t> values = metadata.file().integers(found->first);
    flags.assign(values.begin(), values.end());
  } else {
    if (is_there) period = metadata.integer(suffix);
    if (period < 1) metadata.fail(suffix, "1 or more");
    flags = every_nth_layer(count, period);
    flags.flip();
  }
  if (flags.size() < count) metadata.fail(suffix, "a list of " + std::to_string(count) + " entries, one a layer");
  flags.resize(count);
  return flags;
}

// Which layers have a gated delta net in the place of attention, and its sizes.
void read_delta_layers(const Metadata& metadata, const Architecture& architecture, ModelConfig& config) {
  const int64_t width = read_size(metadata, "ssm.state_size");
  const DeltaShape delta{read_size(metadata, "ssm.group_count"), read_size(metadata, "ssm.time_step_rank"), width,
                         width, read_size(metadata, "ssm.conv_kernel")};
  const char* interval = "full_attention_interval";
  const int64_t period = metadata.has(interval) ? metadata.integer(interval) : architecture.delta_period;
  const std::vector<bool> is_delta = read_pattern(metadata, "attention.recurrent_layers", config.layers.size(), period);
  for (size_t i = 0; i < is_delta.size(); ++i) {
    config.layers[i].has_output_gate = true;
    if (is_delta[i]) config.layers[i].delta = delta;
  }
}

void read_window_pattern(const Metadata& metadata, const Architecture& architecture, ModelConfig& config) {
  if (!metadata.has("attention.sliding_window")) return;
  std::vector<bool> sliding =
      read_pattern(metadata, "attention.sliding_window_pattern", config.layers.size(), architecture.window_period);
  if (std::ranges::find(sliding, true) == sliding.end()) return;
  config.sliding_window = metadata.integer("attention.sliding_window");
  config.layer_is_sliding = std::move(sliding);
}

// Sizes of the layers that slide, and which of the others have keys for values. What read_shape took is the width of
// the latter's heads, and the first layer's number of key-value heads.
void read_sliding_heads(const Metadata& metadata, ModelConfig& config) {
  const int64_t width = read_size(metadata, "attention.key_length_swa");
  const char *values = "attention.value_length_swa", *embeddings = "embedding_length_per_layer_input",
             *shared = "attention.shared_kv_layers";
  if (metadata.has(values) && metadata.integer(values) != width) fail_width(metadata, values, width);
  for (const char* key : {embeddings, shared}) {
    if (metadata.has(key) && metadata.integer(key) != 0)
      metadata.fail(key, "0 or absent, as Gemma 4 E2B and E4B are not supported");
  }
  const std::vector<int64_t> groups = metadata.sizes("attention.head_count_kv");
  for (size_t i = 0; i < config.layers.size(); ++i) {
    LayerShape& shape = config.layers[i];
    if (config.slides(i)) shape.head_dim = width;
    if (i < groups.size()) shape.num_key_value_heads = groups[i];
    shape.has_values = has_tensor(metadata, "blk." + std::to_string(i) + ".attn_v.weight");
  }
}

LayerShape read_shape(const Metadata& metadata, int64_t hidden_size) {
  LayerShape shape;
  shape.input_width = shape.middle_width = shape.output_width = hidden_size;
  shape.intermediate_size = metadata.sizes("feed_forward_length").at(0);
  shape.num_attention_heads = read_first_size(metadata, "attention.head_count");
  shape.num_key_value_heads = metadata.has("attention.head_count_kv")
                                  ? read_first_size(metadata, "attention.head_count_kv")
                                  : shape.num_attention_heads;
  shape.head_dim = read_head_dim(metadata, hidden_size, shape.num_attention_heads);
  return shape;
}

// The sizes that some architectures have layer by layer; what holds of the first layer was checked with everything
// else.
void read_layer_sizes(const Metadata& metadata, ModelConfig& config) {
  const auto read = [&](const std::string& suffix, int64_t LayerShape::* member, bool may_be_none) {
    if (!metadata.has(suffix)) return;
    const std::vector<int64_t> sizes = metadata.sizes(suffix);
    if (sizes.size() == 1) return;
    if (sizes.size() != config.layers.size())
      metadata.fail(suffix, "a list of one size for each of the " + std::to_string(config.layers.size()) + " layers");
    for (size_t i = 0; i < sizes.size(); ++i) {
      if (!may_be_none || sizes[i] != 0) check_size(metadata, suffix, sizes[i]);
      config.layers[i].*member = sizes[i];
    }
  };
  read("feed_forward_length", &LayerShape::intermediate_size, /*may_be_none=*/false);
  read("attention.head_count", &LayerShape::num_attention_heads, /*may_be_none=*/true);
  read("attention.head_count_kv", &LayerShape::num_key_value_heads, /*may_be_none=*/true);
  for (const LayerShape& shape : config.layers) {
    if (shape.num_attention_heads == 0 && shape.num_key_value_heads == 0) continue;
    if (shape.num_key_value_heads == 0 || shape.num_attention_heads % shape.num_key_value_heads != 0)
      metadata.fail("attention.head_count_kv", "divisors of attention.head_count, layer by layer");
    if (shape.num_attention_heads > kMaxSize / shape.head_dim)
      metadata.fail("attention.head_count", "such that all heads together are at most 2^20 wide");
  }
}

int64_t read_vocab_size(const Metadata& metadata) {
  const GgufTensor* embedding = metadata.file().find("token_embd.weight");
  if (embedding == nullptr || embedding->shape.size() != 2) {
    throw_error(ErrorKind::kBadInput, metadata.file().path().string(),
                ": tensor \"token_embd.weight\" is missing or no matrix; the file holds no whole language model");
  }
  return embedding->shape.front();
}

std::optional<int64_t> read_token_id(const GgufFile& file, const std::string& key) {
  if (!file.has(key)) return std::nullopt;
  return file.integer(key);
}

// The metadata as they are; parse_dense_config judges the numbers.
ModelConfig read_unchecked(const Metadata& metadata) {
  ModelConfig config;
  const Architecture& architecture = architecture_of(metadata);
  config.model_type = architecture.model_type;
  config.vocab_size = read_vocab_size(metadata);
  config.hidden_size = read_size(metadata, "embedding_length");
  const LayerShape shape = read_shape(metadata, config.hidden_size);
  const char* further = "nextn_predict_layers";  // layers that guess further tokens, which are left out
  const int64_t layers = metadata.integer("block_count") - (metadata.has(further) ? metadata.integer(further) : 0);
  if (layers < 1 || layers > kMaxLayers) metadata.fail("block_count", "from 1 to " + std::to_string(kMaxLayers));
  config.layers.assign(static_cast<size_t>(layers), shape);
  config.max_position_embeddings = metadata.integer("context_length");
  config.rms_norm_eps = metadata.number("attention.layer_norm_rms_epsilon");
  config.rotary_dim = read_rotary_dim(metadata, architecture, shape.head_dim);
  config.rope = read_rope(metadata, config.rotary_dim, architecture.turning_share > 0);
  if (architecture.sliding_rope_theta > 0)
    config.sliding_rope = read_sliding_rope(metadata, architecture, config.rope.theta);
  config.activation = architecture.activation;
  if (architecture.query_pre_attn_scalar > 0) config.attention_scale = gguf_attention_scale(config);
  if (architecture.has_multipliers) read_multipliers(metadata, config);
  if (architecture.score_cap > 0) {
    config.score_cap = positive(metadata, "attn_logit_softcapping", architecture.score_cap);
    config.logit_cap = positive(metadata, "final_logit_softcapping", architecture.logit_cap);
  }
  if (architecture.may_cap_logits) {
    const char* cap = "final_logit_softcapping";  // llama.cpp caps where the file is silent, and 0 means no cap
    const bool is_none = metadata.has(cap) && metadata.number(cap) == 0;
    config.logit_cap = is_none ? 0 : positive(metadata, cap, 30);
  }
  config.attention_scale = architecture.attention_scale > 0 ? architecture.attention_scale : config.attention_scale;
  config.tie_word_embeddings = !has_tensor(metadata, "output.weight");
  config.qkv_bias = has_tensor(metadata, "blk.0.attn_q.bias");
  config.o_bias = has_tensor(metadata, "blk.0.attn_output.bias");
  config.mlp_bias = has_tensor(metadata, "blk.0.ffn_gate.bias");
  if (architecture.unrotated_period > 0)
    config.layer_is_unrotated = every_nth_layer(config.layers.size(), architecture.unrotated_period);
  const char* window = "attention.sliding_window";  // Phi-3 files say 0 where there is none
  if (architecture.window == WindowRule::kAllLayers && metadata.has(window) && metadata.integer(window) > 0)
    config.sliding_window = metadata.integer(window);
  if (architecture.window == WindowRule::kByPattern) read_window_pattern(metadata, architecture, config);
  if (architecture.global_head_dim > 0) read_sliding_heads(metadata, config);
  if (architecture.has_delta_layers()) read_delta_layers(metadata, architecture, config);
  config.bos_token_id = read_token_id(metadata.file(), "tokenizer.ggml.bos_token_id");
  config.eos_token_id = read_token_id(metadata.file(), "tokenizer.ggml.eos_token_id");
  return config;
}

}  // namespace

ModelConfig read_config(const GgufFile& file) {
  const Metadata metadata(file);
  const ModelConfig raw = read_unchecked(metadata);
  ModelConfig config =
      parse_dense_config(describe_dense_config(raw), raw.model_type, file.path().string() + ": metadata");
  config.rope.frequency_divisors = raw.rope.frequency_divisors;
  if (metadata.architecture() == architecture_of(config).gguf_of_unequal_layers) read_layer_sizes(metadata, config);
  return config;
}

}  // namespace dynslice
