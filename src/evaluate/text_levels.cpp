#include "dynslice/evaluate/text_levels.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <span>
#include <string>
#include <string_view>

#include "dynslice/text/tokenizer/tokenizer_unicode.h"

namespace dynslice {
namespace {

// The character that begins at text[place], and its bytes. What is no UTF-8 (decode gives none) counts as a byte.
std::pair<uint32_t, size_t> character_at(std::string_view text, size_t place) {
  const auto byte = [&](size_t i) { return static_cast<uint32_t>(static_cast<unsigned char>(text[i])); };
  const uint32_t first = byte(place);
  const size_t length = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : first >= 0xC0 ? 2 : 1;
  if (length == 1 || place + length > text.size()) return {first, 1};
  uint32_t code = first & (0xFFU >> (length + 1));
  for (size_t i = 1; i < length; ++i) code = code << 6 | (byte(place + i) & 0x3FU);
  return {code, length};
}

// Words of `text` that begin at `from` or behind it.
int64_t count_words(std::string_view text, size_t from) {
  int64_t words = 0;
  bool in_word = false;
  for (size_t place = 0; place < text.size();) {
    const auto [code, length] = character_at(text, place);
    const bool space = is_python_space(code);
    if (!space && !in_word && place >= from) ++words;
    in_word = !space;
    place += length;
  }
  return words;
}

}  // namespace

ScoredText count_scored_text(const Tokenizer& tokenizer, const TokenWindows& windows, PerplexityProtocol protocol) {
  const auto unscored = static_cast<size_t>(first_scored_token(protocol, windows.length));
  const auto length = static_cast<size_t>(windows.length);
  ScoredText counted;
  for (size_t window = 0; window < static_cast<size_t>(windows.count); ++window) {
    const std::span<const int32_t> ids(windows.ids.data() + window * length, length);
    const std::string text = tokenizer.decode(ids);
    const size_t before = std::min(text.size(), tokenizer.decode(ids.first(unscored)).size());
    counted.bytes += static_cast<int64_t>(text.size() - before);
    counted.words += count_words(text, before);
  }
  return counted;
}

TextLevels text_levels(const Perplexity& perplexity, const ScoredText& text) {
  const double loss = perplexity.mean_loss * static_cast<double>(perplexity.scored_tokens);
  TextLevels levels;
  if (text.words > 0) levels.word_perplexity = std::exp(loss / static_cast<double>(text.words));
  if (text.bytes > 0) {
    levels.byte_perplexity = std::exp(loss / static_cast<double>(text.bytes));
    levels.bits_per_byte = loss / static_cast<double>(text.bytes) / std::numbers::ln2;
  }
  return levels;
}

}  // namespace dynslice
