#include "cli/options/values.h"

#include <CLI/CLI.hpp>
#include <charconv>
#include <cmath>

#include "dynslice/support/error.h"

namespace dynslice::cli {

double parse_ratio(const std::string& option, const std::string& text) {
  double value = NAN;
  const bool percent = text.ends_with('%');
  const char* last = text.data() + text.size() - (percent ? 1 : 0);
  const auto [end, error] = std::from_chars(text.data(), last, value);
  if (text.empty() || error != std::errc() || end != last || !std::isfinite(value)) {
    throw_error(ErrorKind::kUsage, option, " \"", text, "\": must be a ratio such as 25% or 0.25");
  }
  if (percent) value /= 100;
  if (value < 0 || value >= 1) {
    throw_error(ErrorKind::kUsage, option, " ", text, ": must be at least 0% and below 100%",
                !percent && value >= 1 && value < 100 ? "; did you mean " + text + "%?" : "");
  }
  return value;
}

SizeTarget parse_target(const std::string& text) {
  const size_t equals = text.find('=');
  const std::string name = text.substr(0, equals);
  const auto quantity = choice_named<SizeQuantity>(name);
  if (equals == std::string::npos || !quantity) {
    throw_error(ErrorKind::kUsage, "--target \"", text, "\": must be params=R, bytes=R or flops=R, with R such as 25%");
  }
  return {*quantity, parse_ratio("--target " + name, text.substr(equals + 1))};
}

int64_t parse_integer(const std::string& option, const std::string& text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || error != std::errc() || end != text.data() + text.size() || value < 0) {
    throw_error(ErrorKind::kUsage, option, " \"", text, "\": must be a whole number, 0 or more");
  }
  return value;
}

RangeOption parse_range(const std::string& option, const std::string& text) {
  const size_t colon = text.find(':');
  if (colon == std::string::npos)
    throw_error(ErrorKind::kUsage, option, " \"", text, "\": must be A:B, two token positions");
  RangeOption range;
  if (colon > 0) range.begin = parse_integer(option, text.substr(0, colon));
  if (colon + 1 < text.size()) range.end = parse_integer(option, text.substr(colon + 1));
  if (range.end && *range.end <= range.begin) throw_error(ErrorKind::kUsage, option, " ", text, ": is empty");
  return range;
}

std::vector<int> parse_bits(const std::string& option, const std::string& text) {
  std::vector<int> bits;
  for (const std::string& part : CLI::detail::split(text, ',')) {
    const int64_t value = parse_integer(option, part);
    if (value < 2 || value > 8) throw_error(ErrorKind::kUsage, option, " ", part, ": 2 to 8 bits exist");
    if (!bits.empty() && value >= bits.back()) {
      throw_error(ErrorKind::kUsage, option, " ", text,
                  ": levels must fall, from the important layers' to the others'");
    }
    bits.push_back(static_cast<int>(value));
  }
  return bits;
}

std::vector<double> parse_ratios(const std::string& option, const std::string& text) {
  std::vector<double> ratios;
  for (const std::string& part : CLI::detail::split(text, ',')) {
    // All layers may go to a lower level, though a width never goes as a whole.
    ratios.push_back(part == "100%" || part == "1" ? 1.0 : parse_ratio(option, part));
  }
  return ratios;
}

std::vector<std::pair<int64_t, int64_t>> parse_indices(const std::string& option, const std::string& text) {
  std::vector<std::pair<int64_t, int64_t>> ranges;
  for (const std::string& part : CLI::detail::split(text, ',')) {
    const size_t dash = part.find('-');
    const int64_t first = parse_integer(option, part.substr(0, dash));
    const int64_t last = dash == std::string::npos ? first : parse_integer(option, part.substr(dash + 1));
    if (last < first) throw_error(ErrorKind::kUsage, option, " \"", text, "\": ", part, " runs backwards");
    ranges.emplace_back(first, last);
  }
  return ranges;
}

}  // namespace dynslice::cli
