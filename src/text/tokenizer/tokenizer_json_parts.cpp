#include "text/tokenizer/tokenizer_json_parts.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "dynslice/support/error.h"
#include "dynslice/support/log.h"
#include "dynslice/text/tokenizer/tokenizer_unicode.h"

namespace dynslice {
namespace {

constexpr int kDeepestSequence = 16;

std::string type_of(const JsonReader& reader) { return reader.string("type"); }

[[noreturn]] void refuse_type(const JsonReader& reader, const std::string& supported) {
  reader.fail("type", "one of " + supported);
}

void require_shallow(const JsonReader& reader, int depth) {
  if (depth > kDeepestSequence) {
    throw_error(ErrorKind::kBadInput, reader.where(), ": Sequences are nested deeper than ", kDeepestSequence);
  }
}

// Reads the parts of a Sequence, which are in the array `key`.
template <typename Part, typename Read>
std::vector<std::unique_ptr<Part>> read_sequence(const JsonReader& reader, const std::string& key, int depth,
                                                 Read read) {
  require_shallow(reader, depth);
  if (!reader.has(key) || !reader.raw().at(key).is_array()) reader.fail(key, "an array");
  std::vector<std::unique_ptr<Part>> parts;
  size_t i = 0;
  for (const Json& part : reader.raw().at(key)) {
    parts.push_back(read(part, reader.where() + "." + key + "[" + std::to_string(i++) + "]", depth + 1));
  }
  return parts;
}

// {"String": "..."} or {"Regex": "..."}
struct Pattern {
  std::string text;
  bool is_regex;
};

Pattern read_pattern(const JsonReader& reader) {
  if (reader.has("pattern") && reader.raw().at("pattern").is_object()) {
    const JsonReader pattern = reader.object("pattern");
    if (pattern.has("Regex")) return {pattern.string("Regex"), true};
    if (pattern.has("String")) return {pattern.string("String"), false};
  }
  reader.fail("pattern", R"({"String": ...} or {"Regex": ...})");
}

// A string of one character, as "replacement" of Metaspace is.
std::string read_character(const JsonReader& reader, const std::string& key) {
  std::string text = reader.string(key);
  if (text.empty() || utf8_length(text[0]) != text.size()) reader.fail(key, "one character");
  return text;
}

PrependScheme read_prepend_scheme(const JsonReader& reader) {
  const std::string scheme = reader.string_or("prepend_scheme", "always");
  const bool old_style_never = !reader.boolean_or("add_prefix_space", true);
  if (scheme == "never") return PrependScheme::kNever;
  // Files from before prepend_scheme have add_prefix_space alone.
  if (old_style_never && !reader.has("prepend_scheme")) return PrependScheme::kNever;
  if (old_style_never) reader.fail("add_prefix_space", "true, or prepend_scheme \"never\"");
  if (scheme == "always") return PrependScheme::kAlways;
  if (scheme == "first") return PrependScheme::kFirst;
  reader.fail("prepend_scheme", "always, first or never");
}

SplitBehavior read_behavior(const JsonReader& reader) {
  const std::string name = reader.string("behavior");
  constexpr std::pair<const char*, SplitBehavior> kBehaviors[] = {
      {"Removed", SplitBehavior::kRemoved},
      {"Isolated", SplitBehavior::kIsolated},
      {"MergedWithPrevious", SplitBehavior::kMergedWithPrevious},
      {"MergedWithNext", SplitBehavior::kMergedWithNext},
      {"Contiguous", SplitBehavior::kContiguous},
  };
  for (const auto& [known, behavior] : kBehaviors) {
    if (name == known) return behavior;
  }
  reader.fail("behavior", "Removed, Isolated, MergedWithPrevious, MergedWithNext or Contiguous");
}

std::unique_ptr<Normalizer> read_replace(const JsonReader& reader) {
  Pattern pattern = read_pattern(reader);
  std::string content = reader.string("content");
  if (pattern.text.empty()) reader.fail("pattern", "a pattern that is not empty");
  if (!pattern.is_regex) return make_replace_normalizer(std::move(pattern.text), std::move(content));
  return make_regex_replace_normalizer(TokenizerRegex(pattern.text, reader.where()), std::move(content));
}

std::unique_ptr<Normalizer> read_one_normalizer(const Json& json, const std::string& where, int depth) {
  const JsonReader reader(json, where);
  const std::string type = type_of(reader);
  if (type == "NFC") return make_unicode_normalizer(NormalForm::kNfc);
  if (type == "NFD") return make_unicode_normalizer(NormalForm::kNfd);
  if (type == "NFKC") return make_unicode_normalizer(NormalForm::kNfkc);
  if (type == "NFKD") return make_unicode_normalizer(NormalForm::kNfkd);
  if (type == "Prepend") return make_prepend_normalizer(reader.string("prepend"));
  if (type == "Replace") return read_replace(reader);
  if (type == "Sequence") {
    return make_normalizer_sequence(read_sequence<Normalizer>(reader, "normalizers", depth, read_one_normalizer));
  }
  refuse_type(reader, "NFC, NFD, NFKC, NFKD, Prepend, Replace, Sequence");
}

std::unique_ptr<PreTokenizer> read_split(const JsonReader& reader) {
  Pattern pattern = read_pattern(reader);
  const SplitBehavior behavior = read_behavior(reader);
  const bool invert = reader.boolean_or("invert", false);
  if (!pattern.is_regex) return make_split_on_string(std::move(pattern.text), behavior, invert);
  return make_split_on_regex(TokenizerRegex(pattern.text, reader.where()), behavior, invert);
}

std::unique_ptr<PreTokenizer> read_one_pre_tokenizer(const Json& json, const std::string& where, int depth) {
  const JsonReader reader(json, where);
  const std::string type = type_of(reader);
  if (type == "Split") return read_split(reader);
  if (type == "Digits") return make_digits(reader.boolean_or("individual_digits", false));
  if (type == "ByteLevel") {
    return make_byte_level(reader.boolean_or("add_prefix_space", true), reader.boolean_or("use_regex", true));
  }
  if (type == "Metaspace") {
    return make_metaspace(read_character(reader, "replacement"), read_prepend_scheme(reader),
                          reader.boolean_or("split", true));
  }
  if (type == "Sequence") {
    return make_sequence(read_sequence<PreTokenizer>(reader, "pretokenizers", depth, read_one_pre_tokenizer));
  }
  refuse_type(reader, "Split, Digits, ByteLevel, Metaspace, Sequence");
}

std::unique_ptr<Decoder> read_replace_decoder(const JsonReader& reader) {
  Pattern pattern = read_pattern(reader);
  std::string content = reader.string("content");
  if (pattern.text.empty()) reader.fail("pattern", "a pattern that is not empty");
  if (!pattern.is_regex) return make_replace_decoder(std::move(pattern.text), std::move(content));
  return make_regex_replace_decoder(TokenizerRegex(pattern.text, reader.where()), std::move(content));
}

std::unique_ptr<Decoder> read_one_decoder(const Json& json, const std::string& where, int depth) {
  const JsonReader reader(json, where);
  const std::string type = type_of(reader);
  if (type == "ByteLevel") return make_byte_level_decoder();
  if (type == "Metaspace")
    return make_metaspace_decoder(read_character(reader, "replacement"), read_prepend_scheme(reader));
  if (type == "Replace") return read_replace_decoder(reader);
  if (type == "ByteFallback") return make_byte_fallback_decoder();
  if (type == "Fuse") return make_fuse_decoder();
  if (type == "Strip") {
    constexpr int64_t kMost = 1 << 20;
    return make_strip_decoder(read_character(reader, "content"), static_cast<size_t>(reader.integer("start", 0, kMost)),
                              static_cast<size_t>(reader.integer("stop", 0, kMost)));
  }
  if (type == "Sequence") {
    return make_decoder_sequence(read_sequence<Decoder>(reader, "decoders", depth, read_one_decoder));
  }
  refuse_type(reader, "ByteLevel, Metaspace, Replace, ByteFallback, Fuse, Strip, Sequence");
}

std::optional<int32_t> token_id(const Json& value) {
  if (!value.is_number_integer()) return std::nullopt;
  if (value.get<double>() < 0 || value.get<double>() > static_cast<double>(kMaxTokenId)) return std::nullopt;
  return value.get<int32_t>();
}

[[noreturn]] void refuse_token_id(const std::string& where, const Json& value) {
  throw_error(ErrorKind::kBadInput, where, ": a token id must be an integer in [0, ", kMaxTokenId, "]; found ",
              value.dump(-1, ' ', true).substr(0, 40));
}

StringMap<int32_t> read_vocab(const JsonReader& model) {
  const JsonReader vocab = model.object("vocab");
  StringMap<int32_t> tokens;
  tokens.reserve(vocab.raw().size());
  for (const auto& [token, value] : vocab.raw().items()) {
    const auto id = token_id(value);
    if (!id) refuse_token_id(vocab.where() + ": token \"" + token + "\"", value);
    tokens.emplace(token, *id);
  }
  return tokens;
}

// "a b", or ["a", "b"]
std::optional<BpeMerge> read_merge(const Json& json) {
  if (json.is_array() && json.size() == 2 && json[0].is_string() && json[1].is_string()) {
    return BpeMerge{json[0].get<std::string>(), json[1].get<std::string>()};
  }
  if (!json.is_string()) return std::nullopt;
  const auto& text = json.get_ref<const std::string&>();
  const size_t space = text.find(' ');
  if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos) return std::nullopt;
  return BpeMerge{text.substr(0, space), text.substr(space + 1)};
}

std::vector<BpeMerge> read_merges(const JsonReader& model) {
  if (!model.has("merges") || !model.raw().at("merges").is_array()) model.fail("merges", "an array");
  const Json& list = model.raw().at("merges");
  std::vector<BpeMerge> merges;
  merges.reserve(list.size());
  for (const Json& item : list) {
    if (item.is_string() && item.get_ref<const std::string&>().starts_with("#version")) continue;
    auto merge = read_merge(item);
    if (!merge) {
      throw_error(ErrorKind::kBadInput, model.where(), ": merges[", merges.size(),
                  R"(] must be "left right" or ["left", "right"]; found )", item.dump(-1, ' ', true).substr(0, 60));
    }
    merges.push_back(std::move(*merge));
  }
  return merges;
}

// Parts of BPE that no family of models here uses: better refused than ignored.
void refuse_unsupported_bpe(const JsonReader& model) {
  if (model.string_or("type", "BPE") != "BPE") refuse_type(model, "BPE");
  if (model.number_or("dropout", 0.0) != 0.0) model.fail("dropout", "null");
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (!model.string_or(key, "").empty()) model.fail(key, "null");
  }
}

std::vector<int32_t> read_special_ids(const JsonReader& processor, const std::string& name) {
  const JsonReader specials = processor.object("special_tokens");
  const JsonReader special = specials.object(name);
  if (!special.has("ids") || !special.raw().at("ids").is_array()) special.fail("ids", "an array of token ids");
  std::vector<int32_t> ids;
  for (const Json& value : special.raw().at("ids")) {
    const auto id = token_id(value);
    if (!id) refuse_token_id(special.where() + ": ids", value);
    ids.push_back(*id);
  }
  return ids;
}

std::vector<TemplateItem> read_template(const JsonReader& processor) {
  if (!processor.has("single") || !processor.raw().at("single").is_array()) processor.fail("single", "an array");
  std::vector<TemplateItem> items;
  size_t i = 0;
  for (const Json& json : processor.raw().at("single")) {
    const JsonReader item(json, processor.where() + ".single[" + std::to_string(i++) + "]");
    if (item.has("SpecialToken")) {
      items.push_back({false, read_special_ids(processor, item.object("SpecialToken").string("id"))});
    } else {
      if (item.object("Sequence").string("id") != "A") item.fail("Sequence", "sequence A");
      items.push_back({true, {}});
    }
  }
  return items;
}

void collect_templates(const Json& json, const std::string& where, int depth,
                       std::vector<std::vector<TemplateItem>>& templates) {
  const JsonReader reader(json, where);
  require_shallow(reader, depth);
  const std::string type = type_of(reader);
  if (type == "ByteLevel") return;  // only moves offsets
  if (type == "TemplateProcessing") {
    templates.push_back(read_template(reader));
  } else if (type == "Sequence") {
    if (!reader.has("processors") || !reader.raw().at("processors").is_array()) reader.fail("processors", "an array");
    for (const Json& part : reader.raw().at("processors"))
      collect_templates(part, where + ".processors", depth + 1, templates);
  } else {
    refuse_type(reader, "TemplateProcessing, ByteLevel, Sequence");
  }
}

}  // namespace

std::unique_ptr<Normalizer> read_normalizer(const Json& json, const std::string& where) {
  return json.is_null() ? nullptr : read_one_normalizer(json, where, 0);
}

std::unique_ptr<PreTokenizer> read_pre_tokenizer(const Json& json, const std::string& where) {
  return json.is_null() ? nullptr : read_one_pre_tokenizer(json, where, 0);
}

std::unique_ptr<Decoder> read_decoder(const Json& json, const std::string& where) {
  return json.is_null() ? nullptr : read_one_decoder(json, where, 0);
}

std::unique_ptr<BpeModel> read_bpe_model(const Json& json, const std::string& where) {
  const JsonReader model(json, where);
  refuse_unsupported_bpe(model);
  BpeOptions options;
  options.unk_token = model.string_or("unk_token", "");
  options.fuse_unk = model.boolean_or("fuse_unk", false);
  options.byte_fallback = model.boolean_or("byte_fallback", false);
  options.ignore_merges = model.boolean_or("ignore_merges", false);
  return std::make_unique<BpeModel>(read_vocab(model), read_merges(model), std::move(options), where);
}

std::vector<std::vector<TemplateItem>> read_post_processor(const Json& json, const std::string& where) {
  std::vector<std::vector<TemplateItem>> templates;
  if (!json.is_null()) collect_templates(json, where, 0, templates);
  return templates;
}

std::vector<AddedToken> read_added_tokens(const Json& json, const std::string& where, const BpeModel& model) {
  std::vector<AddedToken> tokens;
  if (json.is_null()) return tokens;
  if (!json.is_array()) throw_error(ErrorKind::kBadInput, where, ": must be an array");
  StringMap<int32_t> ids;
  auto next_id = static_cast<int64_t>(model.size());
  for (const Json& item : json) {
    const JsonReader reader(item, where + "[" + std::to_string(tokens.size()) + "]");
    AddedToken token;
    token.content = reader.string("content");
    if (token.content.empty()) continue;
    token.special = reader.boolean_or("special", false);
    token.normalized = reader.boolean_or("normalized", !token.special);
    token.single_word = reader.boolean_or("single_word", false);
    token.lstrip = reader.boolean_or("lstrip", false);
    token.rstrip = reader.boolean_or("rstrip", false);
    const int64_t declared = reader.integer("id", 0, kMaxTokenId);
    const auto known = ids.find(token.content);
    token.id = known != ids.end() ? known->second : model.id_of(token.content).value_or(static_cast<int32_t>(next_id));
    if (token.id == next_id && known == ids.end() && !model.id_of(token.content)) ++next_id;
    if (token.id != declared) {
      log(LogLevel::kWarning, reader.where() + ": token \"" + token.content + "\" says id " + std::to_string(declared) +
                                  " but has id " + std::to_string(token.id));
    }
    ids.emplace(token.content, token.id);
    tokens.push_back(std::move(token));
  }
  return tokens;
}

}  // namespace dynslice
