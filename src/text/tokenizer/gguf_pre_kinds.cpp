#include "text/tokenizer/gguf_pre_kinds.h"

#include "dynslice/support/error.h"

namespace dynslice {
namespace {

constexpr const char* kGpt2 = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr const char* kLlama3 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kQwen2 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kTekken =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

constexpr const char* kGpt4o =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kSeed =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+)";
// DeepSeek-V3's, which Hunyuan has too: numbers, then Chinese and Japanese, then the rest.
constexpr const char* kDeepseekNumbers = R"(\p{N}{1,3})";
constexpr const char* kDeepseekIdeographs =
    "[\xE4\xB8\x80-\xE9\xBE\xA5\xE3\x81\x80-\xE3\x82\x9F\xE3\x82\xA0-\xE3\x83\xBF]+";
constexpr const char* kDeepseekRest =
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| "
    "?[\\p{P}\\p{S}]+[\r\n]*|"
    "\\s*[\r\n]+|\\s+(?!\\S)|\\s+";

// A pre-tokenizer as a flat list of steps, so that two ways of writing the same one are equal. Null for one that
// GGUF has no words for.
Json steps_of(const Json& pre_tokenizer) {
  Json steps = Json::array();
  const std::string type = pre_tokenizer.is_object() ? pre_tokenizer.value("type", "") : "";
  if (type == "Sequence") {
    for (const Json& part : pre_tokenizer.at("pretokenizers")) {
      const Json inner = steps_of(part);
      if (inner.is_null()) return nullptr;
      steps.insert(steps.end(), inner.begin(), inner.end());
    }
  } else if (type == "Digits" && pre_tokenizer.value("individual_digits", false)) {
    steps.push_back("digits");
  } else if (type == "Split" && pre_tokenizer.at("pattern").contains("Regex")) {
    // Where a pattern covers the whole text, to keep the matches is to cut between them.
    const std::string behavior = pre_tokenizer.value("behavior", "");
    const bool invert = pre_tokenizer.value("invert", false);
    if (behavior != "Isolated" && !(behavior == "Removed" && invert)) return nullptr;
    steps.push_back(pre_tokenizer.at("pattern").at("Regex"));
  } else if (type == "ByteLevel" && !pre_tokenizer.value("add_prefix_space", true)) {
    if (pre_tokenizer.value("use_regex", true)) steps.push_back(kGpt2);
    steps.push_back("bytes");
  } else {
    return nullptr;
  }
  return steps;
}

bool is_nfc(const Json& normalizer) {
  if (!normalizer.is_object()) return false;
  if (normalizer.value("type", "") != "Sequence") return normalizer.value("type", "") == "NFC";
  const Json& parts = normalizer.at("normalizers");
  return parts.size() == 1 && is_nfc(parts.front());
}

Json part_of(const Json& tokenizer, const std::string& key) {
  return tokenizer.contains(key) ? tokenizer.at(key) : Json(nullptr);
}

}  // namespace

const std::vector<PreKind>& pre_kinds() {
  static const std::vector<PreKind> kinds = {
      {.names = {"default"}, .patterns = {R"([\p{P}\$\+<=>\^~\|]+)", kGpt2, R"(\p{N}+)", "[0-9][0-9][0-9]"}},
      {.names = {"gpt-2", "gpt2", "phi-2", "olmo", "mpt", "exaone4", "granite-docling", "trillion", "jais"},
       .patterns = {}},
      // llama.cpp isolates digits here too. No token of SmolLM's vocabulary has two digits, so that this changes only
      // what stands before a digit (8 of 304,986 tokens of wikitext-2 test); transformers reads the file without that
      // step, and its ids are those that published figures for this file rest on.
      {.names = {"smollm"}, .patterns = {}},
      {.names = {"starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"},
       .patterns = {},
       .individual_digits = true},
      {.names = {"llama-bpe", "llama3", "llama-v3"}, .patterns = {kLlama3}, .ignore_merges = true, .add_bos = true},
      {.names = {"dbrx", "smaug-bpe"}, .patterns = {kLlama3}},
      {.names = {"glm4"}, .patterns = {kLlama3}, .ignore_merges = true},
      {.names = {"qwen2", "deepseek-r1-qwen"}, .patterns = {kQwen2}, .nfc = true},
      {.names = {"stablelm2", "hunyuan"}, .patterns = {kQwen2}},
      {.names = {"tekken"}, .patterns = {kTekken}, .ignore_merges = true, .add_bos = true},
      {.names = {"gpt-4o", "llama4"}, .patterns = {kGpt4o}},
      {.names = {"seed-coder"}, .patterns = {kSeed}},
      {.names = {"deepseek-v3", "hunyuan-dense"}, .patterns = {kDeepseekNumbers, kDeepseekIdeographs, kDeepseekRest}},
  };
  return kinds;
}

Json byte_level_pre_tokenizer(const PreKind& kind) {
  Json parts = Json::array();
  if (kind.individual_digits) parts.push_back({{"type", "Digits"}, {"individual_digits", true}});
  for (const char* pattern : kind.patterns) {
    parts.push_back(
        {{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}, {"invert", false}});
  }
  parts.push_back({{"type", "ByteLevel"},
                   {"add_prefix_space", false},
                   {"trim_offsets", true},
                   {"use_regex", kind.patterns.empty()}});
  return {{"type", "Sequence"}, {"pretokenizers", parts}};
}

const PreKind& recognise_pre_kind(const Json& tokenizer, const std::string& where) {
  const Json steps = steps_of(part_of(tokenizer, "pre_tokenizer"));
  const Json normalizer = part_of(tokenizer, "normalizer");
  const bool nfc = is_nfc(normalizer);
  const bool ignore_merges = tokenizer.at("model").value("ignore_merges", false);
  const bool is_plain =
      normalizer.is_null() || (normalizer.contains("normalizers") && normalizer["normalizers"].empty());
  if (!is_plain && !nfc) {
    throw_error(ErrorKind::kBadInput, where, ": key \"normalizer\" must be null or NFC; GGUF knows no other");
  }
  const PreKind* nearly = nullptr;  // the same but for ignore_merges, which seldom makes a difference
  for (const PreKind& kind : pre_kinds()) {
    if (steps.is_null() || kind.nfc != nfc || steps_of(byte_level_pre_tokenizer(kind)) != steps) continue;
    if (kind.ignore_merges == ignore_merges) return kind;
    if (nearly == nullptr) nearly = &kind;
  }
  if (nearly != nullptr) return *nearly;
  throw_error(ErrorKind::kBadInput, where,
              ": key \"pre_tokenizer\" cuts words in a way that tokenizer.ggml.pre has no name for");
}

}  // namespace dynslice
