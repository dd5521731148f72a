#include "dynslice/jobs/evaluating.h"

#include <array>
#include <vector>

#include "dynslice/jobs/prepare.h"
#include "dynslice/support/error.h"
#include "dynslice/support/format.h"

namespace dynslice {
namespace {

OrderedJson estimate_json(const Estimate& estimate) {
  return {{"value", estimate.value}, {"stderr", estimate.standard_error}};
}

OrderedJson spread_json(const Spread& spread) {
  OrderedJson json = {{"mean", spread.mean.value},
                      {"stderr", spread.mean.standard_error},
                      {"minimum", spread.minimum},
                      {"median", spread.median()},
                      {"maximum", spread.maximum}};
  constexpr std::array kNames = {"p0.1", "p1", "p5", "p10", "p25", "p50", "p75", "p90", "p95", "p99", "p99.9"};
  static_assert(kNames.size() == Spread::kLevels.size());
  for (size_t i = 0; i < kNames.size(); ++i) json["quantiles"][kNames[i]] = spread.quantiles[i];
  return json;
}

}  // namespace

std::string title_of(const TextSource& source) {
  return source.name + (source.split.empty() ? "" : " (" + source.split + ")");
}

TextToScore load_text_to_score(const TextOptions& options, PerplexityProtocol protocol, const CommonOptions& common,
                               const Checkpoint& checkpoint, ProgressSink& progress) {
  std::unique_ptr<Tokenizer> tokenizer;
  TextToScore text;
  text.loaded = load_windows(options, TextUse::kEvaluation, common, checkpoint, progress, &tokenizer);
  text.scored = count_scored_text(*tokenizer, text.loaded.windows, protocol);
  text.measure.protocol = protocol;
  if (protocol == PerplexityProtocol::kLlamaCpp) text.measure.first_token = text.loaded.bos_id;
  return text;
}

OrderedJson to_json(const Perplexity& perplexity, const ScoredText& text, PerplexityProtocol protocol) {
  const TextLevels levels = text_levels(perplexity, text);
  return {{"value", perplexity.value},
          {"stderr", perplexity.standard_error},
          {"windows", perplexity.windows},
          {"tokens", perplexity.tokens},
          {"scored_tokens", perplexity.scored_tokens},
          {"scored_words", text.words},
          {"scored_bytes", text.bytes},
          {"word_perplexity", levels.word_perplexity},
          {"byte_perplexity", levels.byte_perplexity},
          {"bits_per_byte", levels.bits_per_byte},
          {"seqlen", perplexity.seqlen},
          {"protocol", name_of(protocol)}};
}

OrderedJson to_json(const Divergence& divergence) {
  OrderedJson json;
  json["perplexity"] = {{"value", divergence.reference.value}, {"stderr", divergence.reference.standard_error}};
  json["log_ratio"] = estimate_json(divergence.log_ratio);
  json["ratio"] = estimate_json(divergence.ratio);
  json["difference"] = estimate_json(divergence.difference);
  json["correlation"] = divergence.correlation;
  json["kl"] = spread_json(divergence.kl);
  json["probability_change"] = spread_json(divergence.probability_change);
  json["rms_probability_change"] = estimate_json(divergence.rms_probability_change);
  json["same_top"] = estimate_json(divergence.same_top);
  return json;
}

void finish_json(OrderedJson& json, const PeakMemory& peak, double seconds, const OrderedJson& run_description,
                 const OrderedJson& text) {
  json["wall_seconds"] = seconds + (json.contains("wall_seconds") ? json["wall_seconds"].get<double>() : 0);
  add_peaks(json, peak);
  json["provenance"] = run_description;
  json["provenance"]["text"] = text;
}

void check_same_tokens(const Checkpoint& reference, const Checkpoint& checkpoint, const LoadedText& text) {
  const std::vector<int32_t> ids = load_tokenizer(reference.path())->encode(text.source.text);
  if (ids == text.stream) return;
  const auto [other, own] = std::mismatch(ids.begin(), ids.end(), text.stream.begin(), text.stream.end());
  throw_error(ErrorKind::kUsage, reference.path().string(), ": its tokenizer makes other tokens of ",
              title_of(text.source), " than that of ", checkpoint.path().string(), ", from token ", other - ids.begin(),
              " on; only models with one vocabulary can be compared token by token");
}

}  // namespace dynslice
