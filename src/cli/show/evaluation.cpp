#include "cli/show/evaluation.h"

#include <cmath>

#include "cli/show/terminal.h"

namespace dynslice::cli {

std::string describe(const Perplexity& perplexity, const ScoredText& text) {
  const TextLevels levels = text_levels(perplexity, text);
  return "perplexity " + format_fixed(perplexity.value, 4) + " ± " + format_fixed(perplexity.standard_error, 4) +
         "\nper word " + format_fixed(levels.word_perplexity, 4) + ", per byte " +
         format_fixed(levels.byte_perplexity, 4) + ", " + format_fixed(levels.bits_per_byte, 4) + " bits per byte\n";
}

void print_divergence(std::ostream& out, const Divergence& divergence, const std::string& reference) {
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
  print_table(out, {"against " + reference, "", "±"}, rows);
}

}  // namespace dynslice::cli
