#include "dynslice/formats/safetensors/weight_packing.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <memory>
#include <string_view>

#include "dynslice/support/error.h"

namespace dynslice {
namespace {

constexpr std::string_view kRegex = "re:";
// Of a match: a pattern comes from a file, and must not keep us busy for ever.
constexpr uint32_t kMatchLimit = 100'000;

std::vector<std::string> read_names(const JsonReader& reader, const std::string& key) {
  std::vector<std::string> names;
  if (!reader.has(key)) return names;
  const Json& list = reader.raw().at(key);
  if (!list.is_array()) reader.fail(key, "a list of names");
  for (const Json& name : list) {
    if (!name.is_string()) reader.fail(key, "a list of names");
    names.push_back(name.get<std::string>());
  }
  return names;
}

// A key whose presence means that the model computes something that we would not.
void check_absent(const JsonReader& reader, const std::string& key, const std::string& what) {
  if (!reader.has(key)) return;
  const Json& value = reader.raw().at(key);
  if ((value.is_object() || value.is_array()) && value.empty()) return;
  reader.fail(key, "null: " + what + " is not supported");
}

void check_sparsity(const JsonReader& reader) {
  const std::string key = "sparsity_config";
  if (!reader.has(key) || reader.raw().at(key).empty()) return;
  const JsonReader sparsity = reader.object(key);
  if (sparsity.string_or("format", "dense") != "dense") sparsity.fail("format", "\"dense\": sparsity is not supported");
}

void check_transforms(const JsonReader& reader) {
  const std::string key = "transform_config";
  if (!reader.has(key) || reader.raw().at(key).empty()) return;
  check_absent(reader.object(key), "config_groups", "a transform of activations");
}

void check_order(const JsonReader& weights) {
  const std::string key = "actorder";
  if (!weights.has(key)) return;
  const Json& order = weights.raw().at(key);
  // Of these the columns stay where they are.
  if (order == false || order == "weight" || order == "static") return;
  weights.fail(key, "null, \"weight\" or \"static\": groups of reordered columns are not supported");
}

int64_t read_group_size(const JsonReader& weights) {
  const int64_t size = weights.has("group_size") ? weights.integer("group_size", -1, INT64_MAX) : -1;
  const std::string strategy = weights.string_or("strategy", size > 0 ? "group" : size == -1 ? "channel" : "");
  if (strategy != "group" && strategy != "channel") weights.fail("strategy", "\"group\" or \"channel\"");
  if (strategy == "channel") {
    if (size > 0) weights.fail("group_size", "null where the strategy is \"channel\"");
    return 0;
  }
  if (size < 1) weights.fail("group_size", "a positive integer");
  return size;
}

PackingGroup read_group(const JsonReader& reader, const std::string& name, const std::string& format) {
  PackingGroup group;
  group.name = name;
  if (reader.string_or("format", format) != "pack-quantized") reader.fail("format", "\"pack-quantized\"");
  check_absent(reader, "input_activations", "quantization of activations");
  check_absent(reader, "output_activations", "quantization of activations");
  group.targets = read_names(reader, "targets");
  if (group.targets.empty()) reader.fail("targets", "a list of names");
  const JsonReader weights = reader.object("weights");
  if (weights.string_or("type", "int") != "int") weights.fail("type", "\"int\"");
  group.bits = static_cast<int>(weights.integer("num_bits", 1, 8));
  group.symmetric = weights.boolean_or("symmetric", true);
  if (weights.has("dynamic") && weights.raw().at("dynamic") != false) weights.fail("dynamic", "false");
  check_order(weights);
  check_absent(weights, "block_structure", "a scale for a block of several rows");
  group.group_size = read_group_size(weights);
  return group;
}

struct FreeCode {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
};
struct FreeMatch {
  void operator()(pcre2_match_data* match) const { pcre2_match_data_free(match); }
};
struct FreeContext {
  void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
};

// Whether `text` begins with a match, as Python's re.match has it.
bool begins_with(const std::string& text, std::string_view pattern, const std::string& where) {
  int error = 0;
  size_t place = 0;
  const std::unique_ptr<pcre2_code, FreeCode> code(pcre2_compile(
      reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(), PCRE2_ANCHORED, &error, &place, nullptr));
  const auto fail = [&](const char* what) {
    throw_error(ErrorKind::kBadInput, where, ": the regular expression ",
                Json(pattern).dump(-1, ' ', true, Json::error_handler_t::replace), " ", what);
  };
  if (code == nullptr) fail("is none");
  const std::unique_ptr<pcre2_match_data, FreeMatch> match(pcre2_match_data_create(1, nullptr));
  const std::unique_ptr<pcre2_match_context, FreeContext> context(pcre2_match_context_create(nullptr));
  pcre2_set_match_limit(context.get(), kMatchLimit);
  const int found =
      pcre2_match(code.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), 0, 0, match.get(), context.get());
  if (found < 0 && found != PCRE2_ERROR_NOMATCH) fail("takes too long");
  return found >= 0;
}

// How closely a target means a module; the closest one counts.
enum class Match { kNone, kClass, kPattern, kName };

Match match_of(const std::string& target, const std::string& module, const std::string& where) {
  if (target == module) return Match::kName;
  if (target.starts_with(kRegex)) {
    const bool matches = begins_with(module, std::string_view(target).substr(kRegex.size()), where);
    return matches ? Match::kPattern : Match::kNone;
  }
  // Module is what the class Linear is derived from.
  return target == "Linear" || target == "Module" ? Match::kClass : Match::kNone;
}

}  // namespace

WeightPacking read_weight_packing(const JsonReader& reader) {
  const auto unsupported = [&](const std::string& key, const std::string& supported) {
    reader.fail(key, supported + "; give such a checkpoint, the unquantized one, or a GGUF file");
  };
  WeightPacking packing;
  packing.where = reader.where();
  if (reader.string_or("quant_method", "") != "compressed-tensors")
    unsupported("quant_method", "\"compressed-tensors\", of which the format \"pack-quantized\" is read");
  const std::string format = reader.string_or("format", "");
  if (format != "pack-quantized" && format != "mixed-precision") unsupported("format", "\"pack-quantized\"");
  // Versions of 2024 called what they had packed frozen.
  const std::string status = reader.string_or("quantization_status", "");
  if (status != "compressed" && status != "frozen") reader.fail("quantization_status", "\"compressed\"");
  check_absent(reader, "kv_cache_scheme", "quantization of the cache");
  check_absent(reader, "moe_sparsity_config", "sparsity");
  check_sparsity(reader);
  check_transforms(reader);
  const JsonReader groups = reader.object("config_groups");
  for (const auto& [name, value] : groups.raw().items()) {
    packing.groups.push_back(read_group(groups.object(name), name, format));
  }
  packing.ignored = read_names(reader, "ignore");
  return packing;
}

const PackingGroup* packing_group_of(const WeightPacking& packing, const std::string& module) {
  for (const std::string& ignored : packing.ignored) {
    if (match_of(ignored, module, packing.where) != Match::kNone) return nullptr;
  }
  const PackingGroup* closest = nullptr;
  std::pair<Match, std::string> by{Match::kNone, ""};
  for (const PackingGroup& group : packing.groups) {
    for (const std::string& target : group.targets) {
      const Match match = match_of(target, module, packing.where);
      // Of several patterns the first in the order of their letters counts; of the same target the last group.
      if (match < by.first || match == Match::kNone || (match == by.first && target > by.second)) continue;
      by = {match, target};
      closest = &group;
    }
  }
  return closest;
}

}  // namespace dynslice
