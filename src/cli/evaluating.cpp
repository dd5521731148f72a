#include "cli/evaluating.h"

#include <array>
#include <vector>

#include "cli/show/terminal.h"
#include "cli/verbs/resources.h"

namespace dynslice::cli {
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

OrderedJson to_json(const Perplexity& perplexity, const ScoredText& text, const std::string& protocol) {
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
          {"protocol", protocol}};
}

std::string describe(const Perplexity& perplexity, const ScoredText& text) {
  const TextLevels levels = text_levels(perplexity, text);
  return "perplexity " + format_fixed(perplexity.value, 4) + " ± " + format_fixed(perplexity.standard_error, 4) +
         "\nper word " + format_fixed(levels.word_perplexity, 4) + ", per byte " +
         format_fixed(levels.byte_perplexity, 4) + ", " + format_fixed(levels.bits_per_byte, 4) + " bits per byte\n";
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

void finish_json(OrderedJson& json, const ComputeOptions& compute, double seconds, const OrderedJson& run_description,
                 const OrderedJson& text) {
  json["wall_seconds"] = seconds + (json.contains("wall_seconds") ? json["wall_seconds"].get<double>() : 0);
  add_peaks(json, peak_memory(compute));
  json["provenance"] = run_description;
  json["provenance"]["text"] = text;
}

void print_divergence(const Divergence& divergence, const std::string& reference) {
  std::vector<std::vector<std::string>> rows;
  const auto estimate = [&](const std::string& name, const Estimate& value, int digits, double scale = 1) {
    rows.push_back(
        {name, format_fixed(scale * value.value, digits), format_fixed(scale * value.standard_error, digits)});
  };
  const auto value = [&](const std::string& name, double figure, int digits) {
    rows.push_back({name, format_fixed(figure, digits), ""});
  };
  estimate("perplexity", {divergence.perplexity.value, divergence.perplexity.standard_error}, 4);
  estimate("  of the reference", {divergence.reference.value, divergence.reference.standard_error}, 4);
  estimate("  ln of their ratio", divergence.log_ratio, 5);
  estimate("  ratio", divergence.ratio, 5);
  estimate("  difference", divergence.difference, 4);
  value("  correlation of the losses, %", 100 * divergence.correlation, 2);
  estimate("KL divergence, mean", divergence.kl.mean, 6);
  value("  median", divergence.kl.median(), 6);
  const auto quantiles = [&](const Spread& spread, int digits, double scale) {
    for (const auto& [name, index] : {std::pair{"  5 %", 2}, {"  95 %", 8}, {"  99 %", 9}})
      value(name, scale * spread.quantiles[static_cast<size_t>(index)], digits);
  };
  quantiles(divergence.kl, 6, 1);
  value("  maximum", divergence.kl.maximum, 6);
  estimate("change of the next token's probability, %, mean", divergence.probability_change.mean, 3, 100);
  estimate("  RMS", divergence.rms_probability_change, 3, 100);
  quantiles(divergence.probability_change, 3, 100);
  estimate("same top token, %", divergence.same_top, 3, 100);
  print_table({"against " + reference, "", "±"}, rows);
}

}  // namespace dynslice::cli
